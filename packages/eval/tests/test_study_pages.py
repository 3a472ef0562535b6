"""The human study over HTTP and in a browser: what annotators see, send and can break."""

from __future__ import annotations

import html
import io
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
from headless_chromium import headless_chromium
from PIL import Image
from proxies import PREFIX, TakesAway
from waiting import HANG_SECONDS, wait_until

pytest.importorskip("starlette", reason="the extra is missing: pip install 'diptych-eval[study]'")

from starlette.testclient import TestClient

from diptych.eval.study.app import make_app
from diptych.eval.study.pictures import find_pictures
from diptych.eval.study.plan import make_plan
from diptych.eval.study.store import Annotator, Study, create_study
from diptych.eval.study.vocabulary import read_vocabulary

SECRETS = ("model-ours", "model-theirs", "picture-key")
NASTY = """<script>alert('dog')</script> & "cats" sitting {{ 7 * 7 }}"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two systems with telling names, six captions, one of them hostile; three annotators."""
    texts = {f"picture-key-{i}": f"a red dog sitting on wall {i}" for i in range(5)}
    texts["picture-key-5"] = NASTY
    pictures = {}
    for number, name in enumerate(SECRETS[:2]):
        (tmp_path / name).mkdir()
        for place, key in enumerate(texts):
            color = (250 * number, 40 * place, 90)
            Image.new("RGB", (48, 48), color).save(tmp_path / name / f"{key}.png")
        pictures[name] = find_pictures(tmp_path / name)
    plan = make_plan(
        texts, SECRETS[:2], read_vocabulary(), annotators=3, answers_per_item=3, checks_per_kind=1
    )
    create_study(tmp_path / "study.db", plan, pictures, title="Trial <b>of</b> pictures", seed=0)
    return Study(tmp_path / "study.db")


@pytest.fixture
def client(study: Study) -> TestClient:
    return TestClient(make_app(study), follow_redirects=False, raise_server_exceptions=False)


def right_answer(study: Study, annotator: Annotator) -> str:
    asked = study.next_question(annotator)
    assert asked is not None
    if asked.item.kind == "hummus":
        return asked.item.word or ""
    return "first" if asked.system_first else "second"


def test_annotators_see_every_question_and_no_name_of_a_model(study: Study, client: TestClient) -> None:
    annotator = study.annotators()[0]
    told, kinds = [client.get(f"/s/{annotator.token}").text], set()
    while (asked := study.next_question(annotator)) is not None:
        reply = client.get(f"/s/{annotator.token}/question")
        assert reply.status_code == 200 and f"{asked.position + 1} of {asked.total}" in reply.text
        kinds.add((asked.item.kind, asked.item.check))
        if asked.item.kind == "fidelity":
            assert asked.item.caption not in reply.text or asked.item.caption == ""
        if asked.item.kind == "hummus" and not asked.item.check:
            assert asked.item.word not in re.findall(r"\w+", reply.text.split('class="caption"')[1])
        told += [reply.text, str(reply.headers)]
        pictures = re.findall(r'src="\.\./\.\.(/p/[^"]+)"', reply.text)
        assert len(pictures) == (1 if asked.item.kind == "hummus" else 2)
        for picture in map(client.get, pictures):
            assert picture.headers["content-type"] == "image/png"
            told += [picture.content.decode("latin1"), str(picture.headers), str(picture.url)]
        data = {
            "question": asked.position,
            "revision": 0,
            "seconds": "1.25",
            "answer": right_answer(study, annotator),
        }
        sent = client.post(f"/s/{annotator.token}/answer", data=data)
        assert (sent.status_code, sent.headers["location"]) == (303, "question")
        told.append(str(sent.headers))
    assert kinds == {(kind, check) for kind in ("hummus", "fidelity", "semantics") for check in (True, False)}
    told.append(client.get(f"/s/{annotator.token}/question").text)
    assert "Thank you" in told[-1]
    for secret in (*SECRETS, "study.db", study.admin_token):
        assert not any(secret in text for text in told), secret
    # and the sizes and formats of files tell nothing either
    assert {len(re.findall("IHDR", text)) for text in told} == {0, 1}


def test_pictures_lie_on_the_side_that_the_plan_says(study: Study, client: TestClient) -> None:
    annotator, sides = study.annotators()[0], set()
    for position in range(60):
        asked = study.question(annotator, position)
        if asked is None or asked.item.other is None:
            continue
        first = Image.open(io.BytesIO(client.get(f"/p/{asked.pictures[0]}").content))
        ours_first = np.asarray(first)[0, 0, 0] == 0
        assert ours_first == asked.system_first
        sides.add(ours_first)
    assert sides == {True, False}


def test_captions_titles_and_answers_are_escaped(study: Study, client: TestClient) -> None:
    annotator, seen = study.annotators()[0], 0
    while (asked := study.next_question(annotator)) is not None:
        text = client.get(f"/s/{annotator.token}/question").text
        if asked.item.caption == NASTY:
            seen += 1
            assert "<script>alert" not in text and "49" not in re.sub(r"\d+ of \d+", "", text)
            if asked.item.kind == "semantics":
                assert html.unescape(text).count(NASTY) == 1
        study.add_answer(asked, 0, '"><img src=x>' if asked.item.kind == "hummus" else "tie", None)
        if asked.item.kind == "hummus" and (last := study.last_question(annotator)) and last.id == asked.id:
            assert "<img src=x>" not in client.get(f"/s/{annotator.token}/back").text
    assert seen > 0
    assert "<b>of</b>" not in client.get(f"/s/{annotator.token}").text
    assert "&lt;b&gt;of" in client.get(f"/a/{study.admin_token}").text


def test_submissions_twice_or_out_of_turn_change_nothing(study: Study, client: TestClient) -> None:
    annotator = study.annotators()[0]
    url = f"/s/{annotator.token}/answer"
    send = {"question": 0, "revision": 0, "answer": "dog"}
    assert client.post(url, data=send).status_code == 303
    assert client.post(url, data={**send, "answer": "cat"}).status_code == 303
    assert client.post(url, data={**send, "revision": 7}).status_code == 400
    back = client.get(f"/s/{annotator.token}/back").text
    assert 'value="dog"' in back and 'name="revision" value="1"' in back
    assert client.post(url, data={**send, "revision": 1, "answer": "zebra"}).status_code == 303
    assert [row.answer for row in study.answered() if row.answer] == ["zebra"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"question": "0", "revision": "0", "answer": ""}, 400),
        ({"question": "0", "revision": "0", "answer": "?!"}, 400),
        ({"question": "0", "revision": "0", "answer": "a" * 41}, 400),
        ({"question": "0", "revision": "0", "answer": "do\x00g"}, 400),
        ({"question": "0", "revision": "0", "answer": "d" * 5000}, 413),
        ({"question": "-1", "revision": "0", "answer": "dog"}, 400),
        ({"question": "9999", "revision": "0", "answer": "dog"}, 400),
        ({"question": "1; DROP TABLE answers", "revision": "0", "answer": "dog"}, 400),
        ({"question": "\u0663", "revision": "0", "answer": "dog"}, 400),
        ({"revision": "0", "answer": "dog"}, 400),
        ({"question": "0", "answer": "dog"}, 400),
        ({f"field{i}": "1" for i in range(50)}, 400),
    ],
)
def test_bad_submissions_are_refused_and_kept_out(
    study: Study, client: TestClient, data: dict, status: int
) -> None:
    reply = client.post(f"/s/{study.annotators()[0].token}/answer", data=data)
    assert reply.status_code == status and "This did not work" in reply.text and "Traceback" not in reply.text
    assert all(row.answer is None for row in study.answered())


def test_a_choice_is_one_of_three(study: Study, client: TestClient) -> None:
    annotator = study.annotators()[0]
    while (asked := study.next_question(annotator)).item.other is None:
        study.add_answer(asked, 0, "thing", None)
    position, before = asked.position, sum(row.answer is not None for row in study.answered())
    for answer in ("third", "", "first; --"):
        data = {"question": position, "revision": 0, "answer": answer}
        assert client.post(f"/s/{annotator.token}/answer", data=data).status_code == 400
    for seconds in ("nan", "-1", "1e99", "soon"):
        data = {"question": position, "revision": 0, "answer": "tie", "seconds": seconds}
        assert client.post(f"/s/{annotator.token}/answer", data=data).status_code == 303
    row = [row for row in study.answered() if row.answer][before]
    assert (row.answer, row.seconds) == ("tie", None)


def test_only_the_next_question_and_the_last_of_its_kind_take_answers(
    study: Study, client: TestClient
) -> None:
    annotator = study.annotators()[0]

    def send(position: int, revision: int) -> int:
        asked = study.question(annotator, position)
        answer = "zebra" if asked is not None and asked.item.kind == "hummus" else "second"
        data = {"question": position, "revision": revision, "answer": answer}
        return client.post(f"/s/{annotator.token}/answer", data=data).status_code

    assert send(1, 0) == send(0, 1) == 400, "none that comes later, none that was not given"
    assert send(0, 0) == send(1, 0) == 303
    assert send(0, 1) == 400, "no earlier one anew"
    assert send(0, 0) == 303, "twice is once"
    assert send(1, 1) == send(1, 2) == 303
    while (asked := study.next_question(annotator)).item.kind == "hummus":
        assert send(asked.position, 0) == 303
    assert send(asked.position - 1, 1) == 400, "no hidden word after the next kind has begun"
    assert send(asked.position, 0) == 303
    rows = [row for row in study.answered() if row.annotator == annotator.name and row.answer]
    assert len(rows) == asked.position + 1 and [row.revision for row in rows[:3]] == [0, 2, 0]


def test_unknown_links_paths_and_failures_tell_nothing(study: Study, client: TestClient) -> None:
    token, admin = study.annotators()[0].token, study.admin_token
    for path in (
        "/", "/s/", "/s/x", f"/s/{admin}", f"/a/{token}", f"/a/{token}/answers.csv", "/a/x/figure.svg", "/p/x",
        "/p/..%2f..%2fetc%2fpasswd", "/../study.db", "/study.db", "/s/%00", "/s/" + "x" * 5000, "/docs", "/openapi.json",
        f"/s/{token[:-1]}", f"/s/{token}/../../a/{token}", "/static/study.css", "/s/%F0%9F%98%80", "/a/%F0%9F%98%80",
    ):  # fmt: skip
        reply = client.get(path)
        assert reply.status_code == 404 and "not known" in reply.text, path
    assert client.get(f"/s/{token}/answer").status_code == 405
    study.path.rename(study.path.with_suffix(".gone"))
    reply = client.get(f"/s/{token}")
    assert reply.status_code == 500 and "Something went wrong" in reply.text
    assert "sqlite" not in reply.text and "Traceback" not in reply.text
    sent = client.post(f"/s/{token}/answer", data={"question": 0, "revision": 0, "answer": "dog"})
    assert sent.status_code == 500
    for reply in (client.get("/nothing"), client.get(f"/s/{token}"), sent, client.get("/study.js")):
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"


def test_an_answer_that_cannot_be_saved_is_not_confirmed(study: Study, client: TestClient) -> None:
    with sqlite3.connect(study.path) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    url = f"/s/{study.annotators()[0].token}/answer"
    reply = client.post(url, data={"question": 0, "revision": 0, "answer": "dog"})
    assert reply.status_code == 503 and "could not be saved" in reply.text


def test_the_admin_page_follows_the_answers(study: Study, client: TestClient) -> None:
    admin = f"/a/{study.admin_token}"
    before = client.get(admin).text
    assert "0 of " in before and all(one.token in before for one in study.annotators())
    annotator = study.annotators()[1]
    while (asked := study.next_question(annotator)) is not None:
        answer = "tie" if asked.item.check else right_answer(study, annotator)
        study.add_answer(asked, 0, answer, 3.0)
    page = client.get(admin).text
    assert "1 flagged" in page and "fails the checks" in page and "3.0" in page
    assert "model-ours / model-theirs" in page and "100%" in page and "HUMMUS" in page
    table = client.get(f"{admin}/answers.csv")
    assert table.headers["content-disposition"] == 'attachment; filename="answers.csv"'
    assert table.text.count("\n") == study.next_question(study.annotators()[0]).total + 1
    assert client.get(f"{admin}/results.json").json()["preferences"][0]["system_share"]["value"] == 1
    assert client.get(f"{admin}/figure.png").content.startswith(b"\x89PNG")
    figure = client.get(f"{admin}/figure.svg")
    assert b"model-theirs" in figure.content
    # as a page of its own the policy would take its inline styles away
    assert figure.headers["content-disposition"] == 'attachment; filename="figure.svg"'


# --- behind a proxy under a path


@pytest.mark.parametrize("proxy", ["takes the path away", "leaves it"])
def test_everything_is_asked_for_below_the_path(study: Study, proxy: str) -> None:
    """A browser's way from the personal link to the last question, and the admin's, by the addresses in pages and replies."""
    app = TakesAway(make_app(study)) if proxy == "takes the path away" else make_app(study, PREFIX)
    client = TestClient(app, follow_redirects=False)
    annotator, base = study.annotators()[0], f"http://testserver{PREFIX}/"
    asked_for = set()

    def get(address: str) -> str:
        """The page there, all of whose own addresses answer."""
        assert address.startswith(base)
        reply = client.get(address)
        assert reply.status_code == 200, address
        named = re.findall(r'(?:href|src|data-next|data-address)="([^"]+)"', reply.text)
        for found in (urljoin(address, name) for name in named):
            assert found.startswith(base) and client.get(found).status_code == 200, found
            asked_for.add(re.sub(r"/[\w-]{16,}", "/TOKEN", found.removeprefix(base)))
        return reply.text

    def leads_to(reply: Any) -> str:
        return urljoin(str(reply.url), reply.headers["location"])

    link = f"{base}s/{annotator.token}"
    (start,) = re.findall(r'id="start" href="([^"]+)"', get(link))
    address, answered = urljoin(link, start), 0
    while (asked := study.next_question(annotator)) is not None:
        text = get(address)
        pictures, coming, action = (
            re.findall(rf' {name}="([^"]*)"', text)[0] for name in ("data-pictures", "data-coming", "action")
        )
        for token in coming.split():
            assert client.get(urljoin(address, pictures + token)).status_code == 200
        data = {"question": asked.position, "revision": 0, "answer": right_answer(study, annotator)}
        sent = client.post(urljoin(address, action), data=data)
        assert sent.status_code == 303 and leads_to(sent) == f"{link}/question"
        answered += 1
    assert answered > 10 and "Thank you" in get(f"{link}/question")
    admin = get(f"{base}a/{study.admin_token}")
    assert asked_for >= {
        "study.css", "study.js", "admin.js", "study.svg", "s/TOKEN", "s/TOKEN/question", "s/TOKEN/back", "p/TOKEN",
        "a/TOKEN/answers.csv", "a/TOKEN/results.json", "a/TOKEN/figure.svg", "a/TOKEN/figure.png",
    }  # fmt: skip
    if proxy == "leaves it":
        assert f">{link}<" in admin, "also without a script"
    # a slash too many, and a question that nobody can go back to
    assert leads_to(client.get(f"{link}/?a=b")) == f"{link}?a=b"
    assert leads_to(client.get(f"{base}a/{study.admin_token}/")) == f"{base}a/{study.admin_token}"
    fresh = f"{base}s/{study.annotators()[1].token}"
    assert leads_to(client.get(f"{fresh}/back")) == f"{fresh}/question"
    for wrong in (f"{base}nothing", f"{base}s/wrong/question"):
        reply = client.get(wrong)
        (style,) = re.findall(r'rel="stylesheet" href="([^"]+)"', reply.text)
        assert reply.status_code == 404 and urljoin(wrong, style) == f"{base}study.css"


# --- in a browser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served(study: Study, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "diptych.eval.study", "serve", str(study.path), "--port", str(port)]
    process = subprocess.Popen([*command, "--root-path", PREFIX], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and f"{PREFIX}/a/" in process.stdout.readline()

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/study.css", timeout=HANG_SECONDS).close()
        except OSError:
            return False
        return True

    wait_until(answers, process)
    return process


@pytest.fixture(params=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator:
    with headless_chromium(request.param, tmp_path / "chromium", 800) as window:
        yield window


def test_a_study_is_clicked_through_over_a_killed_server(study: Study, browser) -> None:
    from selenium.common.exceptions import JavascriptException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    annotator, port = study.annotators()[0], free_port()
    wait = WebDriverWait(browser, HANG_SECONDS, poll_frequency=0.05, ignored_exceptions=[JavascriptException])
    is_phone = browser.execute_script("return innerWidth") < 500
    server = served(study, port)

    def wait_for(position: int) -> None:
        """Until the page shows the question at that place and takes answers."""
        script = """const form = document.getElementById("question");
                    return form && form.classList.contains("ready") ? form.elements.question.value : null"""
        wait.until(lambda window: window.execute_script(script) == str(position))

    def answer(position: int, value: str, by_key: bool) -> None:
        if value in ("first", "second", "tie"):
            if by_key:
                key = {"first": "1", "second": Keys.ARROW_RIGHT, "tie": "0"}[value]
                browser.find_element(By.TAG_NAME, "body").send_keys(key)
            else:
                browser.find_element(By.CSS_SELECTOR, f'button[value="{value}"]').click()
        else:
            field = browser.find_element(By.ID, "word")
            field.send_keys(value, Keys.ENTER if by_key else "")
            if not by_key:
                browser.find_element(By.CLASS_NAME, "send").click()

    try:
        browser.get(f"http://127.0.0.1:{port}{PREFIX}/s/{annotator.token}")
        browser.find_element(By.ID, "start").click()
        expected: list[str] = []
        first = study.next_question(annotator)
        assert first is not None
        total, killed, changed, kinds = first.total, 0, 0, []
        while (asked := study.next_question(annotator)) is not None:
            position = asked.position
            wait_for(position)
            assert position == len(expected)
            # no part of a question lies outside the window, at any width
            outside = browser.execute_script(
                """return document.documentElement.scrollWidth > innerWidth
                   || [...document.querySelectorAll("button, img, input:not([type=hidden])")].filter(
                        (e) => e.getBoundingClientRect().bottom > innerHeight + 1).length > 0"""
            )
            assert not outside, asked.item.kind
            value = right_answer(study, annotator) if position % 3 else "tie"
            if asked.item.kind == "hummus":
                value = ("dog", "red", "sitting")[position % 3]
            by_key = position % 2 == 0 and not is_phone
            kinds.append(asked.item.kind)
            if kinds.count(asked.item.kind) == 2 and (not is_phone or asked.item.kind == "semantics"):
                # while an annotator looks at the page the server is killed; the answer waits for the next one
                server.send_signal(signal.SIGKILL)
                server.wait()
                killed += 1
                answer(position, value, by_key)
                wait.until(lambda window: "No connection" in window.find_element(By.ID, "notice").text)
                assert study.next_question(annotator).position == position
                server = served(study, port)
            elif kinds.count(asked.item.kind) == 4:
                # somebody taps twice, and the browser sends twice
                answer(position, value, by_key)
                wait_for(position + 1)
                data = f"question={position}&revision=0&answer={'cat' if asked.item.kind == 'hummus' else 'first'}"
                url = f"http://127.0.0.1:{port}{PREFIX}/s/{annotator.token}/answer"
                with urllib.request.urlopen(url, data.encode()) as reply:
                    assert reply.status == 200
                # and then goes back to change the answer before
                browser.find_element(By.ID, "back").click()
                wait_for(position)
                value = "zebra" if asked.item.kind == "hummus" else "second"
                if asked.item.kind == "hummus":
                    browser.find_element(By.ID, "word").clear()
                answer(position, value, by_key)
                changed += 1
            else:
                answer(position, value, by_key)
            expected.append(value)
            if position + 1 < total:
                wait_for(position + 1)
            else:
                wait.until(lambda window: window.find_elements(By.ID, "end"))
        assert killed == (1 if is_phone else 3) and changed == 3 and len(expected) == total
        # everything that was answered is there, in its order, once
        kept = [row for row in study.answered() if row.annotator == annotator.name]
        assert [row.answer for row in kept] == expected
        assert all(row.seconds is not None and 0 <= row.seconds < HANG_SECONDS for row in kept)
        # the personal link leads to the end, the admin's page to the tallies
        browser.get(f"http://127.0.0.1:{port}{PREFIX}/s/{annotator.token}")
        assert f"all {total} questions" in browser.find_element(By.TAG_NAME, "main").text
        browser.get(f"http://127.0.0.1:{port}{PREFIX}/a/{study.admin_token}")
        assert f"{total} of {total}" in browser.find_element(By.TAG_NAME, "main").text
        links = browser.execute_script("return [...document.querySelectorAll('code')].map((e) => e.textContent)")
        assert links == [f"http://127.0.0.1:{port}{PREFIX}/s/{one.token}" for one in study.annotators()]
        assert browser.execute_script("return document.querySelector('img.figure').decode().then(() => true)")
        # nothing was blocked by the content policy, loaded from elsewhere or broke; the kills are seen as refusals
        logs = [entry["message"] for entry in browser.get_log("browser")]
        assert [
            text for text in logs if "ERR_CONNECTION_REFUSED" not in text and "ERR_EMPTY" not in text
        ] == []
        assert "ours" not in json.dumps(logs)
    finally:
        server.kill()
        server.wait()
