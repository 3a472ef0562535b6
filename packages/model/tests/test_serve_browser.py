"""``diptych serve`` as a process: its address, its end, and its pages in a browser."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from headless_chromium import headless_chromium
from PIL import Image
from waiting import HANG_SECONDS, wait_for_hold

from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.packaged.directory import write_package

pytest.importorskip("fastapi", reason="the extra is missing: pip install 'diptych-model[serve]'")

pytestmark = pytest.mark.parametrize("parts", ["prefix"], indirect=True)
DOCS = Path(__file__).resolve().parents[3] / "docs" / "web-demo.md"
SENTENCE = "a red kite floats."
QUESTIONS = ["is there a red kite?", "how many boats are there?"]


COMMAND = ("-m", "diptych.model.command.app")
# the command, which tells when it begins a painting, never ends one, and waits shorter for those who are answered
PAINTING = """
from threading import Event
import uvicorn
from diptych.model import Diptych
from diptych.model.command import app
own = uvicorn.Config
uvicorn.Config = lambda *given, **options: own(*given, **{**options, "timeout_graceful_shutdown": 0.1})
Diptych.paint = lambda *given, **options: print("here", flush=True) or Event().wait()
app.main()
"""


def started(
    *arguments: str, port: str = "0", python: Sequence[str] = COMMAND
) -> tuple[subprocess.Popen[str], str]:
    """The command as a process, and the address that it prints. python: what Python runs."""
    command = [sys.executable, *python, "serve", "--port", port, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    return process, found[0]


@pytest.fixture(scope="module")
def address(package: Path) -> Iterator[str]:
    process, found = started("--model", str(package), "--example", SENTENCE, "--upload-mib", "0.5")
    yield found
    process.terminate()
    out, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, out, errors) == (0, "Ended.\n", "")


@pytest.fixture(scope="module")
def answering_address(answering_package: Path) -> Iterator[str]:
    arguments = ["--example", SENTENCE, "--question", QUESTIONS[0], "--question", QUESTIONS[1]]
    process, found = started("--model", str(answering_package), *arguments)
    yield found
    process.terminate()
    out, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, out, errors) == (0, "Ended.\n", "")


# what a package may say that the page did not come with: a painting in more steps than a reply holds, and sliders' ends
OWN_OPTIONS = {
    "gibbs": PaintOptions(method="gibbs", sweeps=3, temperature=1.0),
    "twenty steps": PaintOptions(steps=20, temperature=2.125),
}


@pytest.fixture(scope="module")
def own_address(
    request: pytest.FixtureRequest, parts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of a package whose paintings are by the options of this name, and whose captions are drawn."""
    folder = tmp_path_factory.mktemp("own") / "package"
    write_package(
        folder,
        transformer=parts.transformer,
        image_generator=parts.image_generator,
        detector=parts.detector,
        captioning=CaptionOptions(length=12, method="sample", temperature=0.35),
        painting=OWN_OPTIONS[request.param],
    )
    process, found = started("--model", str(folder), "--example", SENTENCE)
    yield found
    process.terminate()
    process.communicate(timeout=HANG_SECONDS)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_leaves_nothing(package: Path, sent: signal.Signals) -> None:
    files = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    process, found = started("--model", str(package))
    body = json.dumps({"caption": SENTENCE}).encode()
    request = urllib.request.Request(found + "/api/paint", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        assert reply.status == 200 and reply.headers["server"] is None
    # it has answered: uvicorn takes both, also in a background job, where Python ignores SIGINT
    process.send_signal(sent)
    out, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, out, errors) == (0, "Ended.\n", "")
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == files


def test_it_ends_at_once_while_the_model_works(package: Path) -> None:
    """As `docker stop` does it; a painting would be waited for, which here never ends."""
    process, found = started("--model", str(package), python=("-c", PAINTING))
    body = json.dumps({"caption": SENTENCE}).encode()
    request = urllib.request.Request(found + "/api/paint", body, {"Content-Type": "application/json"})
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(urllib.request.urlopen, request)
        wait_for_hold(process)
        process.terminate()
        try:
            out, errors = process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()
        assert (process.returncode, out) == (0, "Ended.\n") and "Traceback" not in errors
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked.result()
    assert refused.value.code == 503


def test_an_address_that_is_taken_is_an_error_before_the_model_is_loaded(package: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "diptych.model.command.app", "serve", "--model", str(package)]
        done = subprocess.run([*command, "--port", str(port)], check=False, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"--port {port}: cannot listen" in done.stderr


def test_the_commands_of_the_docs(package: Path, pictures, tmp_path: Path) -> None:
    """Every command of docs/web-demo.md, on a free port and with this model."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here: apt-get install curl")
    commands = [
        command
        for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
        for command in block.replace("\\\n", " ").strip().splitlines()
    ]
    serves = [command for command in commands if command.startswith("diptych serve")]
    asks = [command for command in commands if command.startswith("curl")]
    assert len(serves) >= 1 and len(asks) >= 4
    installs = 'pip install packages/features packages/eval "packages/model[use,serve]"'
    assert set(commands) == {*serves, *asks, installs}
    pictures[0].resize((300, 200)).save(tmp_path / "photo.jpg")
    for serve in serves:
        arguments = serve.replace("models/package", str(package)).removeprefix("diptych serve ")
        found = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {arguments}"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        process, address = started(*without_port(found))
        address = address.replace("0.0.0.0", "127.0.0.1")
        try:
            for ask in asks if serve == serves[0] else asks[:1]:
                done = subprocess.run(
                    ["bash", "-c", ask.replace("http://127.0.0.1:8000", address)],
                    check=False,
                    capture_output=True,
                    text=True,
                    cwd=tmp_path,
                )
                assert done.returncode == 0, ask + done.stderr
                assert "error" not in json.loads(done.stdout), ask + done.stdout
        finally:
            process.terminate()
            process.communicate(timeout=HANG_SECONDS)


def test_the_commands_on_answers_of_the_docs(answering_address: str, pictures, tmp_path: Path) -> None:
    [block] = re.findall(r"```sh answers\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    pictures[0].resize((300, 200)).save(tmp_path / "photo.jpg")
    counts = []
    for command in block.strip().splitlines():
        asked = command.replace("http://127.0.0.1:8000", answering_address)
        done = subprocess.run(
            ["bash", "-c", asked], check=False, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, command + done.stderr
        counts.append(len(json.loads(done.stdout)["answers"]))
    assert counts == [1, 2]


def without_port(arguments: list[str]) -> list[str]:
    if "--port" in arguments:
        place = arguments.index("--port")
        return arguments[:place] + arguments[place + 2 :]
    return arguments


# --- in a browser


@pytest.fixture(params=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator:
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with headless_chromium(request.param, tmp_path / "chromium", 900, camera) as window:
        window.kind = request.param
        yield window


class Page:
    """The demo in a browser."""

    def __init__(self, browser, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.text("#model"))
        # counted in the page, since a busy machine may look too late for what is shown while a painting is watched
        self.watched = 0
        self.run("""
            const play = document.querySelector("#play");
            let playing = false;
            window.watched = 0;
            new MutationObserver(() => {
              const before = playing;
              playing = play.textContent === "Stop";
              if (before && !playing) window.watched++;
            }).observe(play, {childList: true});
        """)

    def wait(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, HANG_SECONDS, poll_frequency=0.05).until(lambda _: condition())

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def click(self, selector: str, number: int = 0) -> None:
        element = self.all(selector)[number]
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def slide(self, selector: str, value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.run(script, self.one(selector), value)

    def painted(self) -> list[int]:
        """Codes of the painting that is shown, after it was watched."""
        self.wait(lambda: self.run("return window.watched") > self.watched)
        self.watched = self.run("return window.watched")
        return self.codes()

    def listen(self, milliseconds: int = 0) -> None:
        """Note in window.sent what is sent from now on, {address, body}, and have each wait so long."""
        self.run(
            """
            const own = window.fetch, milliseconds = arguments[0];
            window.sent = [];
            window.fetch = async (address, options) => {
              if (options && options.body) window.sent.push({ address, body: options.body });
              if (milliseconds) await new Promise((go) => setTimeout(go, milliseconds));
              return own(address, options);
            };
            """,
            milliseconds,
        )

    def codes(self) -> list[int]:
        labels = self.run(
            "return [...document.querySelectorAll('#cells button')].map((cell) => cell.ariaLabel)"
        )
        return [int(label.rpartition(" ")[2]) for label in labels]

    def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        return self.run("return document.documentElement.scrollWidth <= innerWidth")


ON_A_DESKTOP = pytest.mark.parametrize("browser", ["desktop"], indirect=True)


def test_painting_in_a_browser(address: str, browser) -> None:
    page = Page(browser, address)
    assert page.one("#sentence").get_attribute("value") == SENTENCE
    page.one("#sentence").clear()
    page.one("#sentence").send_keys("two blue boats rest on the zebra.")
    assert "zebra" in page.text("#unknown") and "boats" not in page.text("#unknown")
    page.click("#vocabulary summary")
    page.click("#vocabulary .chips button")
    assert page.one("#sentence").get_attribute("value").endswith("zebra. a")
    page.click("#paint-options summary")
    page.slide("#samples", 3)
    assert page.text("output[for=temperature]") == "1.0"
    page.slide("#temperature", 2)
    page.slide("#steps", 4)
    page.click("#paint-button")
    first = page.painted()
    assert len(page.all("#strip button")) == 3 and page.fits()
    # the steps, by hand
    assert page.text("#step-label").startswith("Step 4 of 4")
    page.slide("#step", 1)
    assert page.text("#step-label") == "Step 1 of 4" and page.codes() != first
    page.slide("#step", 4)
    assert page.codes() == first
    page.click("#strip button", 1)
    second = page.codes()
    assert second != first
    # what a code stands for
    for cell in (0, 63):
        page.click("#cells button", cell)
        page.wait(lambda cell=cell: f"Code {second[cell]}:" in page.text("#look-hint"))
    assert all(image.size["width"] > 10 for image in page.all("#patches img")) and page.fits()
    assert [cell.get_attribute("aria-pressed") for cell in page.all("#cells button")].index("true") == 63
    assert [thumb.get_attribute("aria-pressed") for thumb in page.all("#strip button")] == [
        "false",
        "true",
        "false",
    ]
    # at another step another code may stand there
    page.slide("#step", 1)
    assert page.text("#look-hint").startswith("Touch a cell") and not page.all("#patches img")
    # locked cells stay: two that are touched, and by a stroke those between
    page.click("input[value=lock] + span")
    assert page.codes() == second and not page.one("#step").is_enabled(), (
        "what is locked is the painting itself"
    )
    assert page.run("return document.getElementById('repaint').disabled")
    page.click("#cells button", 20)
    assert page.text("#locked-count") == "1 cell locked."
    stroke(page, 8, 13)
    assert page.text("#locked-count") == "7 cells locked." and page.fits()
    assert page.one("#cells button:nth-child(9)").get_attribute("aria-pressed") == "true"
    page.slide("#samples", 1)
    page.slide("#temperature", 2)
    page.click("#repaint")
    again = page.painted()
    kept = [8, 9, 10, 11, 12, 13, 20]
    assert [again[cell] for cell in kept] == [second[cell] for cell in kept] and again != second
    page.click("#lock-swap")
    assert page.text("#locked-count") == "57 cells locked."
    # and what is painted is captioned
    page.click("#caption-painting")
    page.wait(lambda: page.all("#captions li"))
    assert "zebra" in page.text("#origin") and page.fits()
    assert_calm(browser)


def test_all_that_the_page_offers_is_taken(address: str, browser) -> None:
    """Most pictures in most steps: their steps would be more pictures than the server sends."""
    page = Page(browser, address)
    page.slide("#samples", 8)
    page.slide("#steps", 16)
    page.click("#paint-button")
    page.wait(lambda: len(page.all("#strip button")) == 8)
    assert page.text("#paint-notice") == "" and not page.one("#step-bar").is_displayed()
    assert -1 not in page.codes()
    assert_calm(browser)


def test_what_is_asked_for_meanwhile_comes_next(address: str, browser) -> None:
    page = Page(browser, address)
    page.listen(300)
    page.run("""
      for (const text of ["a red kite.", "a blue boat.", "two red boats."]) {
        document.querySelector("#sentence").value = text;
        document.querySelector("#paint-form").requestSubmit();
      }
    """)
    page.wait(lambda: page.one("#painted").get_attribute("alt") == "Painting of: two red boats.")
    sent = page.run("return window.sent.map((one) => JSON.parse(one.body).caption)")
    assert sent == ["a red kite.", "two red boats."]
    # nor does a failure of ours lose it, or keep it for the one after
    page.run("""
      const button = document.querySelector("#paint-button");
      const run = (work) => during(button, document.querySelector("#paint-notice"), document.querySelector("#painting"), work);
      const pause = () => new Promise((go) => setTimeout(go, 50));
      window.done = [];
      run(async () => {
        await pause();
        throw new Error("ours");
      }).catch(() => window.done.push("failed"));
      run(async () => window.done.push("next"));
    """)
    page.wait(lambda: page.run("return window.done") == ["next", "failed"])
    assert_calm(browser)


@ON_A_DESKTOP
def test_a_picture_that_comes_meanwhile_is_captioned_next(address: str, browser) -> None:
    page = Page(browser, address)
    page.listen(300)
    page.run("""
      const drop = (side) => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = side;
        const bytes = Uint8Array.from(atob(canvas.toDataURL().split(",")[1]), (letter) => letter.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
      };
      drop(20);
      drop(30);
    """)
    page.wait(lambda: page.run("return document.getElementById('shown').naturalWidth") == 30)
    assert page.run("return window.sent.length") == 2
    assert_calm(browser)


@ON_A_DESKTOP
@pytest.mark.parametrize("own_address", ["gibbs"], indirect=True)
def test_a_painting_of_more_steps_than_a_reply_holds(own_address: str, browser) -> None:
    page = Page(browser, own_address)
    page.click("#paint-options summary")
    assert page.text("output[for=steps]") == "192" and not page.one("#steps").is_enabled()
    page.slide("#temperature", 0)  # which the method does not know
    page.click("#paint-button")
    page.wait(lambda: page.one("#painting-tools").is_displayed() or page.text("#paint-notice"))
    assert page.text("#paint-notice") == "" and not page.one("#step-bar").is_displayed()
    assert -1 not in page.codes()
    assert_calm(browser)


@ON_A_DESKTOP
@pytest.mark.parametrize("own_address", ["twenty steps"], indirect=True)
def test_sliders_begin_with_the_packages_own_options(
    own_address: str, browser, pictures, tmp_path: Path
) -> None:
    page = Page(browser, own_address)
    page.listen()
    page.click("#paint-options summary")
    assert page.text("output[for=steps]") == "20" and page.text("output[for=temperature]") == "2.125"
    page.click("#paint-button")
    page.painted()
    sent = json.loads(page.run("return window.sent[0].body"))
    assert (sent["steps"], sent["temperature"]) == (20, 2.125)
    # its captions are drawn, unless the slider says 0
    page.click("#caption-tab")
    page.click("#caption details summary")
    assert page.text("output[for=caption-temperature]") == "0.35"
    pictures[4].save(tmp_path / "photo.png")
    page.one("#file").send_keys(str(tmp_path / "photo.png"))
    page.wait(lambda: page.all("#captions li"))
    page.slide("#caption-temperature", 0)
    assert page.text("output[for=caption-temperature]") == "0.00"
    page.click("#caption-again")
    page.wait(lambda: page.one("#caption-again").is_enabled() and page.run("return window.sent.length") == 3)
    page.wait(lambda: not page.all("#photo.waiting"))
    first, second = page.run("return window.sent.slice(1).map((one) => one.address)")
    assert "temperature=0.35" in first and second.endswith("temperature=0")
    assert not page.one("#caption-notice").is_displayed()
    assert_calm(browser)


@ON_A_DESKTOP
def test_a_late_answer_on_a_code_is_not_that_of_another_step(address: str, browser) -> None:
    page = Page(browser, address)
    page.slide("#temperature", 2)  # without chance the steps of this model may be the same
    page.click("#paint-button")
    last = page.painted()
    page.slide("#step", 1)
    first = page.codes()
    cell = next(cell for cell in range(64) if first[cell] != last[cell])
    page.run("""
      const own = window.fetch;
      window.late = new Promise((go) => (window.answer = go));
      window.fetch = async (address, options) => {
        window.fetch = own;
        const reply = await own(address, options);
        await window.late;
        return reply;
      };
    """)
    page.click("#cells button", cell)
    page.slide("#step", 3)
    page.click("#cells button", cell)
    page.wait(lambda: f"Code {last[cell]}:" in page.text("#look-hint"))
    browser.execute_async_script("window.answer(); setTimeout(arguments[0], 200)")
    assert f"Code {last[cell]}:" in page.text("#look-hint")
    assert page.one("#patches img").get_attribute("alt") == f"Patch 1 of code {last[cell]}"
    assert_calm(browser)


@ON_A_DESKTOP
def test_without_motion_paintings_are_watched_when_asked_for_only(address: str, browser) -> None:
    reduced = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", reduced)
    page = Page(browser, address)
    page.click("#paint-button")
    page.wait(lambda: page.one("#painting-tools").is_displayed())
    assert page.text("#play") == "Watch" and page.text("#step-label").startswith("Step 3 of 3")
    assert page.run("return window.watched") == 0
    page.click("#play")
    page.painted()
    assert page.text("#step-label").startswith("Step 3 of 3")
    assert_calm(browser)


@ON_A_DESKTOP
def test_cells_are_locked_by_keyboard_as_they_are_shown(address: str, browser) -> None:
    page = Page(browser, address)
    page.click("#paint-button")
    last = page.painted()
    page.click("input[value=lock] + span")
    assert page.one("#locked-count").get_attribute("role") == "status"
    # a click without a pointer, while the painting is watched
    page.run("watch(); document.querySelector('#cells button').click()")
    assert page.text("#locked-count") == "1 cell locked." and page.text("#play") == "Watch"
    assert page.codes() == last and page.one("#cells button").get_attribute("aria-pressed") == "true"
    assert_calm(browser)


# of all text that is shown and of no disabled control: WCAG's ratio of its colour to that of what is behind it
CONTRASTS = """
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [red, green, blue] = numbers(colour).map((one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const opaque = (colour) => (numbers(colour)[3] ?? 1) === 1;
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility() || one.matches(":disabled, option, noscript, script")) continue;
    let behind = one;
    while (behind !== document.documentElement && !opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const [low, high] = [light(getComputedStyle(one).color), light(getComputedStyle(behind).backgroundColor)].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), one.textContent.trim().slice(0, 40)]);
  }
  return found;
"""


@ON_A_DESKTOP
def test_all_text_can_be_read(answering_address: str, browser) -> None:
    page = Page(browser, answering_address)
    for tab in ("#paint-tab", "#caption-tab", "#answer-tab"):
        page.click(tab)
        for summary in page.all("summary"):
            if summary.is_displayed():
                summary.click()
        found = page.run(CONTRASTS)
        assert any("appears here" in text for _, text in found)
        assert [one for one in found if one[0] < 4.5] == []


def stroke(page: Page, start: int, end: int) -> None:
    """Draw with mouse or finger from one cell to another."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    cells = page.all("#cells button")
    page.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", cells[start])
    kind = "touch" if page.browser.kind == "phone" else "mouse"
    chain = ActionChains(page.browser, devices=[PointerInput(kind, "finger")], duration=50)
    pointer = chain.w3c_actions.pointer_action
    pointer.move_to(cells[start]).pointer_down()
    for cell in cells[start + 1 : end + 1]:
        pointer.move_to(cell)
    pointer.pointer_up()
    chain.perform()


def test_captioning_in_a_browser(address: str, browser, pictures, tmp_path: Path) -> None:
    page = Page(browser, address)
    page.click("#caption-tab")
    assert not page.one("#paint").is_displayed()
    file = tmp_path / "photo.png"
    pictures[4].resize((320, 240)).save(file)
    page.one("#file").send_keys(str(file))
    page.wait(lambda: page.all("#captions li"))
    assert page.run(
        "const i = document.getElementById('shown'); return [i.naturalWidth, i.naturalHeight]"
    ) == [320, 240]
    words = page.all(".words button")
    dark = "return [...document.querySelectorAll('#heat div')].map((cell) => cell.style.backgroundColor)"
    assert len(set(page.run(dark))) == 1 and page.fits()
    page.click(".words button")
    assert "chosen" in words[0].get_attribute("class") and len(set(page.run(dark))) > 5
    page.click(".words button", 1)
    assert [word.get_attribute("aria-pressed") for word in words][:3] == ["false", "true", "false"]
    # several of them, by chance
    page.click("#caption details summary")
    page.slide("#caption-samples", 3)
    page.click("#caption-again")
    page.wait(lambda: len(page.all("#captions li")) == 3)
    assert page.fits()
    # back to a painting
    text = page.text("#captions li .words")
    page.click(".paint-caption")
    page.painted()
    assert "".join(page.one("#sentence").get_attribute("value").split()) == "".join(text.split())
    assert page.one("#paint").is_displayed()
    assert_calm(browser)


def test_asking_in_a_browser(answering_address: str, browser, pictures, tmp_path: Path) -> None:
    page = Page(browser, answering_address)
    page.click("#answer-tab")
    assert page.one("#answer").is_displayed() and not page.one("#paint").is_displayed()
    # without a picture
    assert page.one("#question").get_attribute("value") == QUESTIONS[0]
    page.click("#answer-button")
    page.wait(lambda: "Choose a picture first" in page.text("#answer-notice"))
    file = tmp_path / "photo.png"
    pictures[4].resize((320, 240)).save(file)
    page.one("#file").send_keys(str(file))
    page.wait(lambda: page.run("return document.getElementById('asked').naturalWidth") == 320)
    assert page.one("#answer").is_displayed() and not page.one("#answer-notice").is_displayed()
    # one of the questions that are offered
    page.click("#questions button", 1)
    page.wait(lambda: page.all("#answers li"))
    words = page.all("#asked-words button")
    assert [word.text for word in words] == ["how", "many", "boats", "are", "there", "?"] and page.fits()
    shares = [float(one.text.removesuffix(" %")) for one in page.all("#answers .number")]
    widths = [one.size["width"] for one in page.all("#answers .share span")]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    dark = (
        "return [...document.querySelectorAll('#asked-heat div')].map((cell) => cell.style.backgroundColor)"
    )
    assert len(set(page.run(dark))) == 1
    page.click("#asked-words button")
    assert "chosen" in words[0].get_attribute("class") and len(set(page.run(dark))) > 5
    # one of one's own
    page.one("#question").clear()
    page.one("#question").send_keys("is there a zeppelin?")
    assert "zeppelin" in page.text("#question-unknown")
    page.one("#question").send_keys("\n")
    page.wait(lambda: "never read: zeppelin" in page.text("#answer-notice"))
    page.one("#question").clear()
    page.one("#question").send_keys("is there a red house?\n")
    page.wait(lambda: page.text("#asked-words").replace(" ", "").endswith("redhouse?"))
    assert not page.one("#answer-notice").is_displayed() and page.fits()
    logs = [entry["message"] for entry in browser.get_log("browser")]
    assert len(logs) == 1 and "the server responded with a status of 422" in logs[0]


def test_from_side_to_side_in_a_browser(answering_address: str, browser) -> None:
    """What was painted is asked about, and what was captioned; the keyboard reaches all three sides."""
    page = Page(browser, answering_address)
    page.click("#paint-button")
    page.painted()
    page.click("#answer-painting")
    page.wait(lambda: page.run("return document.getElementById('asked').naturalWidth") == 16)
    assert SENTENCE in page.text("#asked-origin")
    page.click("#answer-button")
    page.wait(lambda: page.all("#answers li"))
    page.click("#paint-tab")
    page.click("#caption-painting")
    page.wait(lambda: page.all("#captions li"))
    page.click("#answer-picture")
    page.wait(lambda: page.one("#answer").is_displayed())
    assert not page.one("#answered").is_displayed() and SENTENCE in page.text("#asked-origin")
    for key, side in (("\ue014", "paint"), ("\ue012", "answer"), ("\ue012", "caption")):
        page.one("nav [aria-selected=true]").send_keys(key)
        assert page.one(f"#{side}").is_displayed()
    assert_calm(browser)


def test_a_package_that_answers_nothing_does_not_offer_to(address: str, browser) -> None:
    page = Page(browser, address)
    assert [tab.text for tab in page.all("nav button") if tab.is_displayed()] == ["Paint", "Caption"]
    page.one("#paint-tab").send_keys("\ue012")
    assert page.one("#caption").is_displayed()
    page.one("#caption-tab").send_keys("\ue014")
    assert page.one("#paint").is_displayed()
    assert_calm(browser)


def test_bad_uploads_in_a_browser(address: str, browser, pictures, tmp_path: Path) -> None:
    page = Page(browser, address)
    page.click("#caption-tab")
    (tmp_path / "text.jpg").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[:100_000])
    for name, message in (
        ("text.jpg", "not a picture"),
        ("large.png", "at most 0.5 MiB"),
        ("half.png", "damaged"),
    ):
        page.one("#file").send_keys(str(tmp_path / name))
        page.wait(lambda message=message: message in page.text("#caption-notice"))
        assert page.fits() and not page.all("#captions li")
    pictures[0].save(tmp_path / "good.png")
    page.one("#file").send_keys(str(tmp_path / "good.png"))
    page.wait(lambda: page.all("#captions li"))
    assert not page.one("#caption-notice").is_displayed()
    logs = [entry["message"] for entry in browser.get_log("browser")]
    assert len(logs) == 2 and all("the server responded with a status of 4" in text for text in logs)


def test_the_camera_in_a_browser(address: str, browser) -> None:
    page = Page(browser, address)
    page.click("#caption-tab")
    if browser.kind == "phone":  # the phone's own camera
        page.run("window.asked = 0; document.getElementById('snapshot').click = () => (window.asked += 1)")
        page.click("#camera")
        assert page.run("return window.asked") == 1
        assert page.one("#snapshot").get_attribute("capture") == "environment"
        return
    page.run("""
      const media = navigator.mediaDevices, own = media.getUserMedia.bind(media);
      window.asked = 0;
      media.getUserMedia = (wanted) => own(wanted, (window.asked += 1));
      document.querySelector("#camera").click();
      document.querySelector("#camera").click();
    """)
    page.wait(lambda: page.run("return document.getElementById('video').videoWidth"))
    assert page.run("return window.asked") == 1, "of two streams one would never be stopped"
    page.click("#shoot")
    page.wait(lambda: page.all("#captions li"))
    assert not page.one("#viewfinder").is_displayed()
    assert page.run("return document.getElementById('video').srcObject.active") is False
    assert_calm(browser)


def test_the_page_of_the_api(address: str, browser) -> None:
    browser.get(address + "/docs")
    page = Page.__new__(Page)
    page.browser = browser
    page.wait(lambda: len(page.all("#calls section")) == 5)
    text = page.text("#calls")
    for part in (
        "/api/paint",
        "/api/caption",
        "/api/answer",
        "question",
        "return_steps",
        "upload_bytes",
        "503",
        "curl",
    ):
        assert part in text, part
    assert page.fits()
    assert_calm(browser)


def assert_calm(browser) -> None:
    """Nothing was blocked by the content policy, missing, or thrown."""
    assert [entry["message"] for entry in browser.get_log("browser")] == []
