"""The web demo's API: what it answers, what it refuses, and that it says so in one sentence."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import psutil
import pytest
from PIL import Image, ImageFile
from waiting import HANG_SECONDS, wait_until

pytest.importorskip("fastapi", reason="the extra is missing: pip install 'diptych-model[serve]'")

from starlette.testclient import TestClient

from diptych.model import Diptych
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.errors import UserError
from diptych.model.packaged.machine import Machine
from diptych.model.serve.app import ServeOptions, make_app

pytestmark = pytest.mark.parametrize("parts", ["prefix"], indirect=True)
CAPTION = "a red kite floats."


def client_of(diptych: Diptych, **options) -> TestClient:
    return TestClient(make_app(diptych, ServeOptions(**options)), raise_server_exceptions=False)


@pytest.fixture
def client(diptych: Diptych) -> TestClient:
    return client_of(diptych)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def decoded(address: str) -> Image.Image:
    head, _, text = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def send(client: TestClient, content: bytes, query: str = "", kind: str = "image/png"):
    return client.post(f"/api/caption{query}", content=content, headers={"Content-Type": kind})


def error_of(reply) -> str:
    """The one sentence of a refusal, which tells nothing of the server's insides."""
    assert reply.headers["content-type"] == "application/json" and list(reply.json()) == ["error"]
    message = reply.json()["error"]
    assert message and "\n" not in message and "Traceback" not in message and ".py" not in message
    return message


def test_paintings_are_the_models(client: TestClient, diptych: Diptych) -> None:
    wanted = {
        "caption": CAPTION,
        "samples": 3,
        "steps": 4,
        "temperature": 1.5,
        "seed": 7,
        "return_steps": True,
    }
    reply = client.post("/api/paint", json=wanted)
    assert reply.status_code == 200
    expected = diptych.paint(CAPTION, samples=3, steps=4, temperature=1.5, seed=7, return_steps=True)
    assert len(reply.json()["paintings"]) == 3
    for found, painting in zip(reply.json()["paintings"], expected, strict=True):
        assert found["codes"] == painting.codes.tolist() and found["seed"] == 7
        assert np.array_equal(np.asarray(decoded(found["image"])), np.asarray(painting.image))
        assert len(found["steps"]) == 4 and found["steps"][-1]["codes"] == found["codes"]
        for step, other in zip(found["steps"], painting.steps, strict=True):
            assert step["codes"] == other.codes.tolist()
            assert np.array_equal(np.asarray(decoded(step["image"])), np.asarray(other.image))
    drawn = client.post("/api/paint", json={"caption": CAPTION, "temperature": 1.5}).json()["paintings"][0]
    again = client.post("/api/paint", json={"caption": CAPTION, "temperature": 1.5, "seed": drawn["seed"]})
    assert again.json()["paintings"][0]["codes"] == drawn["codes"] and drawn["steps"] == []
    best = client.post("/api/paint", json={**wanted, "rerank": True}).json()["paintings"]
    assert len(best) == 1 and best[0]["score"] is not None


def test_captions_are_the_models(client: TestClient, diptych: Diptych, pictures) -> None:
    for kind in ("PNG", "BMP", "GIF", "WEBP", "JPEG"):
        content = encoded(pictures[1], kind)
        reply = send(client, content, "?attention=true")
        [expected] = diptych.caption(content, return_attention=True)
        [found] = reply.json()["captions"]
        assert (reply.json()["width"], reply.json()["height"]) == pictures[1].size
        assert found["text"] == expected.text
        assert [word["word"] for word in found["words"]] == list(expected.attention.words)
        weights = np.array([word["cells"] for word in found["words"]])
        assert weights.shape[1] == 64 and np.allclose(weights.sum(1), 1, atol=1e-3)
        assert np.allclose(weights, expected.attention.weights.numpy(), atol=1e-5)
    drawn = send(client, content, "?samples=3&temperature=2&seed=4", "application/octet-stream").json()
    expected = diptych.caption(content, samples=3, temperature=2.0, seed=4)
    assert [one["text"] for one in drawn["captions"]] == [caption.text for caption in expected]
    assert all(one["words"] is None and one["score"] is None for one in drawn["captions"])
    best = send(client, content, "?samples=3&temperature=2&seed=4&rerank=true").json()["captions"]
    assert len(best) == 1 and best[0]["score"] is not None


def test_a_painting_is_captioned_and_a_caption_painted(client: TestClient) -> None:
    painting = client.post("/api/paint", json={"caption": CAPTION}).json()["paintings"][0]
    content = base64.b64decode(painting["image"].partition(",")[2])
    caption = send(client, content).json()["captions"][0]["text"]
    assert client.post("/api/paint", json={"caption": caption}).status_code == 200


def test_locked_cells_stay(client: TestClient) -> None:
    first = client.post("/api/paint", json={"caption": CAPTION, "seed": 1, "temperature": 2}).json()[
        "paintings"
    ][0]
    codes = first["codes"]
    wanted = {"caption": "two blue boats rest on the sea.", "codes": codes, "seed": 2, "temperature": 2}
    locked = [0, 9, 33, 34, 63]
    for place in ({"locked": locked}, {"repaint": [cell for cell in range(64) if cell not in locked]}):
        reply = client.post("/api/paint", json={**wanted, **place, "samples": 2}).json()["paintings"]
        for painting in reply:
            assert [painting["codes"][cell] for cell in locked] == [codes[cell] for cell in locked]
            assert painting["codes"] != codes
    same = client.post("/api/paint", json={**wanted, "locked": list(range(64))}).json()["paintings"][0]
    assert same["codes"] == codes


def test_the_model_and_its_codes(client: TestClient, diptych: Diptych) -> None:
    model = client.get("/api/model").json()
    assert (model["image_size"], model["grid_size"], model["codebook_size"]) == (16, 8, 16)
    painting = {"method": "mask_predict", "steps": 3, "step_count": 3, "temperature": 0, "guidance": 1.5}
    assert model["painting"] == painting
    assert model["captioning"] == {"method": "greedy", "temperature": 1}
    assert {"kite", "a", "boats"} <= set(model["words"]) and "[UNK]" not in model["words"]
    assert model["has_scorer"] and model["has_examples"] and model["waiting"] == 0
    assert str(diptych.folder.parent) not in json.dumps(model)
    for code in range(16):
        reply = client.get(f"/api/codes/{code}").json()
        expected = diptych.examples(code)
        assert len(reply["examples"]) == len(expected)
        for address, image in zip(reply["examples"], expected, strict=True):
            assert np.array_equal(np.asarray(decoded(address)), np.asarray(image))
    for code in ("16", "-1", "99999999999999999999"):
        reply = client.get(f"/api/codes/{code}")
        assert reply.status_code == 404 and "codes are from 0 to 15" in error_of(reply)
    for code in ("x", "1.5", "..%5cconfig.json"):
        reply = client.get(f"/api/codes/{code}")
        assert reply.status_code == 422 and error_of(reply).startswith("code: ")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "caption: field required"),
        ({"caption": ""}, "caption: "),
        ({"caption": "  "}, "has no word"),
        ({"caption": "\u4f60\u597d"}, "does not know"),
        ({"caption": "a" * 501}, "caption: "),
        ({"caption": 5}, "caption: "),
        ({"caption": CAPTION, "samples": 0}, "samples: "),
        ({"caption": CAPTION, "samples": 9, "temperature": 1}, "samples: "),
        ({"caption": CAPTION, "samples": "2"}, "samples: "),
        ({"caption": CAPTION, "samples": True}, "samples: "),
        ({"caption": CAPTION, "samples": 2, "temperature": 0}, "temperature above 0"),
        ({"caption": CAPTION, "steps": 0}, "steps: "),
        ({"caption": CAPTION, "steps": 65}, "steps: at most 64"),
        ({"caption": CAPTION, "temperature": -1}, "temperature: "),
        ({"caption": CAPTION, "temperature": 1e9}, "temperature: "),
        ({"caption": CAPTION, "seed": -1}, "seed: "),
        ({"caption": CAPTION, "seed": 2**63}, "seed: "),
        ({"caption": CAPTION, "seed": 1.5}, "seed: "),
        ({"caption": CAPTION, "path": "/etc/passwd"}, "path: there is no such option"),
        (
            {"caption": CAPTION, "steps": 60, "samples": 8, "temperature": 1, "return_steps": True},
            "over 128 pictures",
        ),
        ({"caption": CAPTION, "codes": [0] * 64}, "codes together with"),
        ({"caption": CAPTION, "locked": [1]}, "codes together with"),
        ({"caption": CAPTION, "codes": [0] * 64, "locked": [1], "repaint": [1]}, "codes together with"),
        ({"caption": CAPTION, "codes": [0] * 63, "locked": [1]}, "codes: "),
        ({"caption": CAPTION, "codes": [16] * 64, "locked": [1]}, "codes: from 0 to 15"),
        ({"caption": CAPTION, "codes": [0] * 64, "locked": [64]}, "locked: "),
        ({"caption": CAPTION, "codes": [2**70] * 64, "locked": [1]}, "codes.0: "),
        ([], "object"),
        ("text", "object"),
    ],
)
def test_wrong_values_are_named(client: TestClient, wanted, message: str) -> None:
    reply = client.post("/api/paint", json=wanted)
    assert reply.status_code == 422, reply.text
    assert message in error_of(reply)
    assert client.post("/api/paint", json={"caption": CAPTION}).status_code == 200


def test_bodies_that_are_no_request(client: TestClient) -> None:
    kind = {"Content-Type": "application/json"}
    for content in (
        b"",
        b"{",
        b"\xff\xfe",
        b'{"caption": NaN}',
        b'{"caption": "a kite", "temperature": NaN}',
        b"[" * 9999,
    ):
        reply = client.post("/api/paint", content=content, headers=kind)
        assert reply.status_code == 422 and error_of(reply), content[:20]
    large = json.dumps({"caption": CAPTION, "codes": [0] * 100_000}).encode()
    reply = client.post("/api/paint", content=large, headers=kind)
    assert reply.status_code == 413 and error_of(reply)
    # a form of another site's page, which browsers send without asking
    reply = client.post(
        "/api/paint", content=json.dumps({"caption": CAPTION}), headers={"Content-Type": "text/plain"}
    )
    assert reply.status_code == 415 and "Content-Type" in error_of(reply)
    assert client.get("/api/paint").status_code == 405 and error_of(client.get("/api/paint"))


@pytest.mark.parametrize(
    "query", ["samples=0", "samples=9", "samples=x", "temperature=-1", "temperature=nan", "seed=-1", "attention=maybe", "file=/etc/passwd"]
)  # fmt: skip
def test_wrong_queries_are_named(client: TestClient, pictures, query: str) -> None:
    reply = send(client, encoded(pictures[0]), "?" + query)
    assert reply.status_code == 422 and error_of(reply).startswith(query.partition("=")[0] + ": ")


def bomb(side: int) -> bytes:
    """A small PNG file of side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_bad_uploads_are_refused(diptych: Diptych, pictures, monkeypatch) -> None:
    own, sizes = ImageFile.ImageFile.load, []
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda picture: sizes.append(picture.size) or own(picture)
    )
    client = client_of(diptych, upload_bytes=100_000, pixels=1_000_000)
    whole = encoded(Image.effect_noise((200, 200), 60), "JPEG")
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    cases = [
        (b"", 422, "empty"),
        (b"no picture", 415, "not a picture"),
        (text, 415, "not a picture"),
        (svg, 415, "not a picture"),
        (encoded(pictures[0], "TIFF"), 415, "not a picture"),
        (whole[: len(whole) // 2], 422, "damaged"),
        (encoded(pictures[0])[:60], 422, "damaged"),
        (encoded(pictures[0])[:20], 422, "damaged"),
        (bytes(100_001), 413, "more than 0.0954 MiB"),
        (bytes(10_000_000), 413, "more than 0.0954 MiB"),
        (bomb(8000), 413, "8000 x 8000 pixels, at most 1,000,000"),
        (bomb(20000), 413, "pixels"),
    ]
    for content, status, message in cases:
        assert len(content) <= 100_000 or "MiB" in message
        reply = send(client, content, kind="image/jpeg")
        assert (reply.status_code, message in error_of(reply)) == (status, True), (content[:20], reply.text)
    # 20000 x 20000 pixels would be 1.2 GB
    assert sizes and all(width * height <= 1_000_000 for width, height in sizes)
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        reply = send(client, whole, kind=kind)
        assert reply.status_code == 415 and "Content-Type" in error_of(reply)
    assert send(client, whole).status_code == 200


def test_an_upload_without_announced_length_is_cut_off(diptych: Diptych) -> None:
    client = client_of(diptych, upload_bytes=1000)
    sent = []

    def parts():
        for _ in range(100):
            sent.append(1)
            yield bytes(500)

    reply = client.post("/api/caption", content=parts(), headers={"Content-Type": "image/png"})
    assert reply.status_code == 413 and "MiB" in error_of(reply)


def test_an_upload_that_breaks_off_is_no_failure(diptych: Diptych) -> None:
    app, sent = make_app(diptych), []
    kind = (b"content-type", b"image/png")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/api/caption", "raw_path": b"/api/caption", "query_string": b"", "root_path": "", "headers": [kind],
    }  # fmt: skip
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}])

    async def receive() -> dict:
        return next(messages, {"type": "http.disconnect"})

    async def send_on(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send_on))  # raises what goes to the log
    assert sent[0]["status"] == 499


def with_options(diptych: Diptych, captioning: CaptionOptions, painting: PaintOptions) -> Diptych:
    """The packaged model with other options of its own."""
    config = replace(diptych.config, captioning=captioning, painting=painting)
    return Diptych(diptych.folder, config, diptych.parts, Machine(diptych.device, diptych.precision))


def test_what_is_left_out_is_as_the_package_says(diptych: Diptych, pictures) -> None:
    several = CaptionOptions(length=12, method="sample", temperature=2.0, samples=4)
    own = with_options(diptych, several, PaintOptions(steps=2, temperature=1.5, samples=4))
    client = client_of(own)
    [found] = client.post("/api/paint", json={"caption": CAPTION, "seed": 3}).json()["paintings"]
    [expected] = own.paint(CAPTION, seed=3)
    assert found["codes"] == expected.codes.tolist() and found["score"] == pytest.approx(expected.score)
    [found] = send(client, encoded(pictures[0]), "?seed=3").json()["captions"]
    [expected] = own.caption(encoded(pictures[0]), seed=3)
    assert (found["text"], found["sample"]) == (expected.text, expected.sample) and found["score"] is not None
    # what the page sends
    one = client.post("/api/paint", json={"caption": CAPTION, "seed": 3, "samples": 1}).json()["paintings"]
    assert len(one) == 1 and one[0]["score"] is None
    every = client.post("/api/paint", json={"caption": CAPTION, "rerank": False}).json()["paintings"]
    assert len(every) == 4


def test_captions_at_temperature_0_are_the_likeliest(diptych: Diptych, pictures) -> None:
    content = encoded(pictures[0])
    [expected] = diptych.caption(content, method="greedy")
    for own in (
        CaptionOptions(length=12, method="sample", temperature=5.0, samples=4),
        CaptionOptions(length=12, method="beam", samples=2),
        CaptionOptions(length=12),
    ):
        client = client_of(with_options(diptych, own, diptych.config.painting))
        [found] = send(client, content, "?temperature=0").json()["captions"]
        assert (found["text"], found["log_probability"]) == (expected.text, expected.log_probability)
        refused = send(client, content, "?temperature=0&samples=2")
        assert refused.status_code == 422 and "samples" in error_of(refused)


def test_a_reply_is_bounded_whatever_the_method(diptych: Diptych) -> None:
    gibbs = PaintOptions(method="gibbs", sweeps=3, temperature=1.0)
    client = client_of(with_options(diptych, diptych.config.captioning, gibbs))
    wanted = {"caption": CAPTION, "return_steps": True}
    reply = client.post("/api/paint", json=wanted)
    assert reply.status_code == 422 and "1 paintings with 192 steps are over 128 pictures" in error_of(reply)
    reply = client.post("/api/paint", json={**wanted, "steps": 3, "samples": 8, "rerank": True})
    assert [len(one["steps"]) for one in reply.json()["paintings"]] == [3]
    assert client.post("/api/paint", json={**wanted, "steps": 64, "samples": 2}).status_code == 422
    assert client.post("/api/paint", json={**wanted, "steps": 64}).status_code == 200


class Held:
    """A model whose paintings wait until they are let go."""

    def __init__(self, diptych: Diptych) -> None:
        self._diptych, self.begun, self.free = diptych, threading.Semaphore(0), threading.Event()
        self.together = self.most_together = 0

    def __getattr__(self, name: str):
        return getattr(self._diptych, name)

    def paint(self, *arguments, **options):
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        self.begun.release()
        assert self.free.wait(HANG_SECONDS)
        self.together -= 1
        return self._diptych.paint(*arguments, **options)


def test_who_finds_the_queue_full_is_sent_away(diptych: Diptych) -> None:
    held = Held(diptych)
    with client_of(held, queue=3) as client, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(client.post, "/api/paint", json={"caption": CAPTION}) for _ in range(4)]
        assert held.begun.acquire(timeout=HANG_SECONDS)
        wait_until(lambda: client.get("/api/model").json()["waiting"] == 4)
        for reply in (
            client.post("/api/paint", json={"caption": CAPTION}),
            send(client, b"never read", kind="image/png"),
        ):
            assert reply.status_code == 503 and "try again in" in error_of(reply)
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.headers["x-content-type-options"] == "nosniff"
        held.free.set()
        assert [one.result().status_code for one in asked] == [200] * 4
        assert held.most_together == 1
        assert client.get("/api/model").json()["waiting"] == 0
        assert client.post("/api/paint", json={"caption": CAPTION}).status_code == 200


def test_an_upload_that_does_not_come_keeps_nobody_waiting(diptych: Diptych) -> None:
    """The model has one place, and it is that of who is worked on."""
    app, sentence = make_app(diptych, ServeOptions(queue=0)), json.dumps({"caption": CAPTION}).encode()

    async def both() -> int:
        stalled = asyncio.create_task(status_of(app, "/api/caption", b"image/png", b"", ends=False))
        await asyncio.sleep(0.05)
        status = await status_of(app, "/api/paint", b"application/json", sentence)
        assert not stalled.done()
        stalled.cancel()
        return status

    assert asyncio.run(both()) == 200


def test_uploads_together_are_bounded(diptych: Diptych) -> None:
    """Of two that come at once the model could take one only."""
    app, kind = make_app(diptych, ServeOptions(queue=0, upload_bytes=1000)), b"image/png"

    async def both() -> tuple[int, int]:
        stalled = asyncio.create_task(status_of(app, "/api/caption", kind, bytes(900), ends=False))
        await asyncio.sleep(0.05)
        beside = await status_of(app, "/api/caption", kind, bytes(200))
        assert not stalled.done()
        stalled.cancel()
        await asyncio.wait({stalled})
        return beside, await status_of(app, "/api/caption", kind, bytes(200))

    assert asyncio.run(both()) == (503, 415)  # 415: read, and no picture


async def status_of(app, path: str, kind: bytes, body: bytes, ends: bool = True) -> int:
    """Send a request whose body is ``body``, and after it nothing more for ever where it does not end."""
    messages, sent = [{"type": "http.request", "body": body, "more_body": not ends}], []

    async def receive() -> dict:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def keep(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"content-type", kind)],
    }  # fmt: skip
    await app(scope, receive, keep)
    return sent[0]["status"]


def test_twenty_at_once_are_all_answered(diptych: Diptych, pictures) -> None:
    content = encoded(pictures[0])
    with client_of(diptych) as client, ThreadPoolExecutor(20) as threads:

        def ask(number: int):
            if number % 2:
                return send(client, content, f"?samples=2&temperature=2&seed={number}")
            return client.post("/api/paint", json={"caption": CAPTION, "seed": number, "temperature": 2})

        replies = list(threads.map(ask, range(20)))
        assert [reply.status_code for reply in replies] == [200] * 20
        for number, reply in enumerate(replies):
            own = {"captions", "paintings"} & reply.json().keys()
            assert reply.json()[own.pop()] == ask(number).json()["captions" if number % 2 else "paintings"]


def test_memory_stays(diptych: Diptych, pictures) -> None:
    content = encoded(pictures[4].resize((600, 400)))
    with client_of(diptych) as client:

        def requests(count: int) -> None:
            for number in range(count):
                wanted = {"caption": CAPTION, "seed": number, "return_steps": True}
                assert client.post("/api/paint", json=wanted).status_code == 200
                assert send(client, content, "?attention=true").status_code == 200
                assert send(client, b"no picture").status_code == 415
            gc.collect()

        sizes = []
        for _ in range(4):
            requests(10)
            sizes.append(psutil.Process().memory_info().rss)
        # what other tests have left may come and go meanwhile, and only what requests leave grows each time
        assert min(later - earlier for earlier, later in pairwise(sizes)) < 5 * 2**20


def test_what_is_not_there(client: TestClient) -> None:
    for path in ("/static/demo.js", "/index.html", "/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/.env", "/redoc", "/docs/oauth2-redirect"):  # fmt: skip
        reply = client.get(path)
        assert reply.status_code == 404 and "/docs" in error_of(reply), path


def test_pages_load_nothing_from_elsewhere_and_every_reply_has_the_headers(client: TestClient) -> None:
    for path in ("/", "/docs", "/demo.css", "/demo.js", "/caption.js", "/answer.js", "/docs.js", "/icon.svg"):
        reply = client.get(path)
        assert reply.status_code == 200 and len(reply.content) > 200
        outside = reply.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in outside and "https://" not in outside and " style=" not in reply.text
        assert client.head(path).status_code == 200
    for path in ("/", "/nothing", "/api/model", "/api/codes/x", "/openapi.json"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "cache-control" in headers


def test_the_openapi_document_describes_every_call(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/api/model",
        "/api/paint",
        "/api/caption",
        "/api/answer",
        "/api/codes/{code}",
    }
    caption = document["paths"]["/api/caption"]["post"]
    assert {"408", "413", "415", "422", "503"} <= set(caption["responses"])
    assert {one["name"] for one in caption["parameters"]} == {
        "samples",
        "temperature",
        "seed",
        "rerank",
        "attention",
    }
    assert "image/*" in caption["requestBody"]["content"]
    for calls in document["paths"].values():
        for call in calls.values():
            for status, reply in call["responses"].items():
                name = reply["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert (name == "Problem") == (status != "200")


def test_failures_stay_in_the_log(diptych: Diptych, pictures) -> None:
    class Broken:
        def __getattr__(self, name: str):
            return getattr(diptych, name)

        def paint(self, *arguments, **options):
            raise RuntimeError("secret in /srv/models")

        def caption(self, *arguments, **options):
            raise UserError(f"{diptych.folder}/scorer/config.json: not there")

    client = client_of(Broken())
    reply = client.post("/api/paint", json={"caption": CAPTION})
    assert reply.status_code == 500 and "secret" not in reply.text and "went wrong" in error_of(reply)
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    reply = send(client, encoded(pictures[0]))
    assert reply.status_code == 422 and str(diptych.folder) not in error_of(reply)


def test_what_is_read_otherwise_is_said(client: TestClient) -> None:
    long = client.post("/api/paint", json={"caption": "a red kite " * 10}).json()["notes"]
    assert len(long) == 1 and "first 10 word pieces" in long[0]
    assert "characters" in client.post("/api/paint", json={"caption": "a red \u4f60"}).json()["notes"][0]
    assert client.post("/api/paint", json={"caption": CAPTION}).json()["notes"] == []
