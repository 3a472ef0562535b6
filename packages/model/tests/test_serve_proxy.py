"""The web demo behind a proxy under a path, one that takes the path away and one that leaves it; and where it listens."""

from __future__ import annotations

import http.server
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from headless_chromium import headless_chromium
from proxies import PREFIX, TakesAway

pytest.importorskip("fastapi", reason="the extra is missing: pip install 'diptych-model[serve]'")

from starlette.testclient import TestClient
from typer.testing import CliRunner

from diptych.model import Diptych
from diptych.model.command.app import app as command
from diptych.model.command.serve import listen
from diptych.model.errors import UserError
from diptych.model.serve.app import ServeOptions, make_app

sys.path.insert(0, str(Path(__file__).parent))
from test_serve_browser import SENTENCE, Page, started

parts = pytest.mark.parametrize("parts", ["prefix"], indirect=True)
BASE = "http://testserver"


@pytest.fixture(params=["takes it away", "leaves it"])
def client(request: pytest.FixtureRequest, diptych: Diptych) -> TestClient:
    if request.param == "takes it away":
        return TestClient(TakesAway(make_app(diptych)))
    return TestClient(make_app(diptych, ServeOptions(root_path=PREFIX)))


@parts
def test_pages_ask_below_the_path(client: TestClient) -> None:
    """Everything that the pages name, and the calls of their scripts."""
    asked = set()
    for page in (f"{BASE}{PREFIX}/", f"{BASE}{PREFIX}/docs"):
        text = client.get(page).text
        scripts = [urljoin(page, name) for name in re.findall(r'<script src="([^"]+)"', text)]
        called = [
            name
            for script in scripts
            for name in re.findall(r'(?:ask|fetch|sendPicture)\(["`]([^"`?]+)', client.get(script).text)
        ]
        # scripts ask relative to the page
        named = [*re.findall(r'(?:href|src)="([^"]+)"', text), *called]
        asked |= {urljoin(page, name.replace("${code}", "0")) for name in named}
    paths = {urlsplit(address).path.removeprefix(PREFIX) for address in asked}
    assert paths == {
        "/", "/docs", "/demo.css", "/demo.js", "/caption.js", "/answer.js", "/docs.js", "/icon.svg", "/openapi.json",
        "/api/model", "/api/paint", "/api/caption", "/api/answer", "/api/codes/0",
    }  # fmt: skip
    for address in asked:
        assert urlsplit(address).path.startswith(f"{PREFIX}/")
        reply = client.get(address)
        assert reply.status_code == (405 if address.endswith(("paint", "caption", "api/answer")) else 200), address


@parts
def test_the_openapi_document_leads_to_the_calls(client: TestClient) -> None:
    address = f"{BASE}{PREFIX}/openapi.json"
    document = client.get(address).json()
    (server,) = document["servers"]
    for path in document["paths"]:
        call = urljoin(address, server["url"] + path.replace("{code}", "0"))
        assert call == f"{BASE}{PREFIX}{path.replace('{code}', '0')}"
    assert client.get(urljoin(address, server["url"] + "/api/model")).status_code == 200


@parts
def test_a_slash_too_many_leads_back_below_the_path(client: TestClient) -> None:
    for path, query in (("/docs", ""), ("/api/model", "?a=b%20c")):
        reply = client.get(f"{PREFIX}{path}/{query}", follow_redirects=False)
        assert reply.status_code == 307
        found = urljoin(f"{BASE}{PREFIX}{path}/", reply.headers["location"])
        assert found == f"{BASE}{PREFIX}{path}{query}"
    reply = client.post(f"{BASE}{PREFIX}/api/paint/", json={"caption": SENTENCE, "seed": 1})
    assert reply.status_code == 200 and reply.json()["paintings"][0]["seed"] == 1
    assert client.get(f"{BASE}{PREFIX}/nothing/").status_code == 404
    for foreign in ("//example.org/", "/example.org//", "/%2F%2Fexample.org/"):
        reply = client.get(f"{BASE}{PREFIX}{foreign}", follow_redirects=False)
        location = urljoin(f"{BASE}{PREFIX}{foreign}", reply.headers.get("location", ""))
        assert urlsplit(location).netloc == "testserver"


@parts
def test_the_path_alone_leads_to_the_page(diptych: Diptych) -> None:
    client = TestClient(make_app(diptych, ServeOptions(root_path=PREFIX)))
    reply = client.get(PREFIX, follow_redirects=False)
    assert urljoin(f"{BASE}{PREFIX}", reply.headers["location"]) == f"{BASE}{PREFIX}/"
    assert client.get(PREFIX).status_code == client.get("/api/model").status_code == 200
    assert client.get(f"{PREFIX}-other/api/model").status_code == 404


def test_an_option_that_is_no_path() -> None:
    done = CliRunner().invoke(command, ["serve", "--root-path", "https://host/lab"])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith("--root-path 'https://host/lab': no path of an address")


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    """A proxy with PREFIX before `server.behind`, and nothing else."""

    def do_GET(self) -> None:
        self.pass_on(None)

    def do_POST(self) -> None:
        self.pass_on(self.rfile.read(int(self.headers["content-length"])))

    def pass_on(self, body: bytes | None) -> None:
        if not self.path.startswith(f"{PREFIX}/"):
            self.server.outside.append(self.path)
            self.send_error(404)
            return
        kind = {"Content-Type": self.headers["content-type"]} if body is not None else {}
        request = urllib.request.Request(self.server.behind + self.path.removeprefix(PREFIX), body, kind)
        try:
            reply = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            content = reply.read()
            self.send_response(reply.status)
            for name in ("content-type", "content-security-policy"):
                self.send_header(name, reply.headers[name])
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def proxy(package: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    process, address = started("--model", str(package), "--example", SENTENCE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ProxyHandler) as server:
        server.behind, server.outside = address, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
    process.terminate()
    process.communicate()


@parts
def test_in_a_browser(proxy: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    with headless_chromium("desktop", tmp_path / "chromium", 900) as browser:
        address = f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}"
        page = Page(browser, f"{address}/")
        page.click("#paint-button")
        assert page.painted()
        browser.get(f"{address}/docs")
        page.wait(lambda: "/api/caption" in page.text("#calls"))
        shown = page.text("#calls")
        assert f"{address}/api/paint" in shown and f"{address}/api/codes/0" in shown
        page.click(".api")
        page.wait(lambda: browser.current_url == f"{address}/")
    assert proxy.outside == []


# --- where it listens


def test_what_an_address_lets_in_is_said() -> None:
    """`::` answers IPv6 alone on every system, whatever its `bindv6only` says."""
    said = " ".join(CliRunner().invoke(command, ["serve", "--help"], env={"COLUMNS": "500"}).output.split())
    assert "0.0.0.0 lets other machines in by IPv4, :: by IPv6 alone" in said
    try:
        listener = listen("::", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        socket.create_connection(("::1", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@parts
def test_the_line_of_an_ipv6_address(package: Path) -> None:
    try:
        listen("::", 0).close()
    except UserError:
        pytest.skip("this machine has no IPv6")
    process, address = started("--model", str(package), "--host", "::", "--root-path", "lab")
    assert re.fullmatch(r"http://\[::\]:\d+/lab/", address)
    process.terminate()
    process.communicate()
