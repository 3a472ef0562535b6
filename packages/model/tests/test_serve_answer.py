"""The web demo's answers: those of the model, and what it refuses, in one sentence."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra is missing: pip install 'diptych-model[serve]'")

from starlette.testclient import TestClient

from diptych.model import Diptych
from diptych.model.errors import UserError
from diptych.model.serve.app import ServeOptions, make_app

pytestmark = pytest.mark.parametrize("parts", ["prefix"], indirect=True)
QUESTIONS = [
    "is there a red kite?",
    "how many boats are there?",
    "what color is the house?",
]  # as in conftest.py


def client_of(diptych: Diptych, **options) -> TestClient:
    return TestClient(make_app(diptych, ServeOptions(**options)), raise_server_exceptions=False)


@pytest.fixture
def client(answering: Diptych) -> TestClient:
    return client_of(answering)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def send(client: TestClient, content: bytes, query, kind: str = "image/png"):
    return client.post("/api/answer", params=query, content=content, headers={"Content-Type": kind})


def error_of(reply) -> str:
    assert reply.headers["content-type"] == "application/json" and list(reply.json()) == ["error"]
    message = reply.json()["error"]
    assert message and "\n" not in message and "Traceback" not in message and ".py" not in message
    return message


def test_answers_are_the_models(client: TestClient, answering: Diptych, pictures) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        content = encoded(pictures[1], kind)
        reply = send(client, content, {"question": QUESTIONS, "most": 3, "attention": "true"})
        assert reply.status_code == 200, reply.text
        assert (reply.json()["width"], reply.json()["height"]) == pictures[1].size
        expected = answering.answer(content, QUESTIONS, most=3, return_attention=True)
        for question, found, answer in zip(QUESTIONS, reply.json()["answers"], expected, strict=True):
            assert (found["question"], found["text"]) == (question, answer.text)
            assert found["probability"] == pytest.approx(answer.probability, abs=1e-6)
            assert [one["answer"] for one in found["ranked"]] == [one.answer for one in answer.ranked]
            assert [word["word"] for word in found["words"]] == list(answer.attention.words)
            weights = np.array([word["cells"] for word in found["words"]])
            assert np.allclose(weights, answer.attention.weights.numpy(), atol=1e-5)
    [plain] = send(client, content, {"question": QUESTIONS[0]}, "application/octet-stream").json()["answers"]
    assert len(plain["ranked"]) == 5 and plain["words"] is None
    [all_of_them] = send(client, content, {"question": QUESTIONS[0], "most": 20}).json()["answers"]
    assert len(all_of_them["ranked"]) == 6


def test_a_painting_is_asked_about(client: TestClient, answering: Diptych) -> None:
    address = client.post("/api/paint", json={"caption": "a red kite floats."}).json()["paintings"][0][
        "image"
    ]
    content = base64.b64decode(address.partition(",")[2])
    [found] = send(client, content, {"question": QUESTIONS[0]}).json()["answers"]
    [expected] = answering.answer(Image.open(io.BytesIO(content)), QUESTIONS[0])
    assert found["text"] == expected.text
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-6)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "question: field required"),
        ({"question": ""}, "question.0: "),
        ({"question": " "}, "has no word"),
        ({"question": "is there a zeppelin?"}, "never read: zeppelin"),
        ({"question": [QUESTIONS[0], "is there a zeppelin?"]}, "never read: zeppelin"),
        ({"question": "a red kite " * 9}, "word pieces, this model reads 18"),
        ({"question": "a" * 501}, "question.0: "),
        ({"question": QUESTIONS * 6}, "question: "),
        ({"question": QUESTIONS[0], "most": 0}, "most: "),
        ({"question": QUESTIONS[0], "most": 21}, "most: "),
        ({"question": QUESTIONS[0], "most": "x"}, "most: "),
        ({"question": QUESTIONS[0], "attention": "maybe"}, "attention: "),
        ({"question": QUESTIONS[0], "file": "/etc/passwd"}, "file: there is no such option"),
    ],
)
def test_wrong_queries_are_named(client: TestClient, pictures, query, message: str) -> None:
    reply = send(client, encoded(pictures[0]), query)
    assert reply.status_code == 422 and message in error_of(reply)


def test_bad_uploads_are_refused(answering: Diptych, pictures) -> None:
    client = client_of(answering, upload_bytes=100_000, pixels=10_000)
    query = {"question": QUESTIONS[0]}
    whole = encoded(Image.effect_noise((90, 90), 60), "JPEG")
    for content, status, message in (
        (b"", 422, "empty"),
        (b"no picture", 415, "not a picture"),
        (encoded(pictures[0], "TIFF"), 415, "not a picture"),
        (whole[: len(whole) // 2], 422, "damaged"),
        (bytes(100_001), 413, "more than 0.0954 MiB"),
        (encoded(Image.new("1", (200, 200))), 413, "200 x 200 pixels, at most 10,000"),
    ):
        reply = send(client, content, query)
        assert (reply.status_code, message in error_of(reply)) == (status, True), reply.text
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json", ""):
        reply = send(client, whole, query, kind)
        assert reply.status_code == 415 and "Content-Type" in error_of(reply)
    assert send(client, whole, query).status_code == 200
    assert client.get("/api/answer", params=query).status_code == 405


def test_who_finds_the_queue_full_is_sent_away(answering: Diptych, pictures) -> None:
    begun, free = threading.Semaphore(0), threading.Event()

    class Held:
        def __getattr__(self, name: str):
            return getattr(answering, name)

        def answer(self, *arguments, **options):
            begun.release()
            assert free.wait(120)
            return answering.answer(*arguments, **options)

    content, query = encoded(pictures[0]), {"question": QUESTIONS[0]}
    with client_of(Held(), queue=0) as client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(send, client, content, query)
        assert begun.acquire(timeout=120)
        refused = send(client, b"never read", query)
        assert refused.status_code == 503 and "try again in" in error_of(refused)
        assert int(refused.headers["retry-after"]) >= 1
        free.set()
        assert first.result().status_code == 200
        assert send(client, content, query).status_code == 200


def test_failures_stay_in_the_log(answering: Diptych, pictures) -> None:
    class Broken:
        failure: Exception = RuntimeError("secret in /srv/models")

        def __getattr__(self, name: str):
            return getattr(answering, name)

        def answer(self, *arguments, **options):
            raise self.failure

    broken = Broken()
    reply = send(client_of(broken), encoded(pictures[0]), {"question": QUESTIONS[0]})
    assert reply.status_code == 500 and "secret" not in reply.text and "went wrong" in error_of(reply)
    broken.failure = UserError(f"{answering.folder}/answers.json: not there")
    reply = send(client_of(broken), encoded(pictures[0]), {"question": QUESTIONS[0]})
    assert reply.status_code == 422 and str(answering.folder) not in error_of(reply)


def test_the_page_knows_whether_there_are_answers(answering: Diptych, diptych: Diptych, pictures) -> None:
    with_head = client_of(answering, questions=tuple(QUESTIONS)).get("/api/model").json()
    assert with_head["can_answer"] is True and with_head["questions"] == QUESTIONS
    assert with_head["limits"]["questions"] == 16 and {"how", "many"} <= set(with_head["words"])
    without = client_of(diptych, questions=tuple(QUESTIONS))
    assert without.get("/api/model").json()["can_answer"] is False
    assert without.get("/api/model").json()["questions"] == []
    reply = send(without, encoded(pictures[0]), {"question": "a red kite?"})
    assert reply.status_code == 422 and "no answer head" in error_of(reply)


def test_the_openapi_document_describes_it(client: TestClient) -> None:
    call = client.get("/openapi.json").json()["paths"]["/api/answer"]["post"]
    assert {one["name"]: one["required"] for one in call["parameters"]} == {
        "question": True,
        "most": False,
        "attention": False,
    }
    assert "image/*" in call["requestBody"]["content"]
    assert {"200", "413", "415", "422", "503"} <= set(call["responses"])
