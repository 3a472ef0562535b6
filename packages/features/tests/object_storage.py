"""Object storage for tests: a real S3 server on a free port (moto's), which fails when told to, and what was asked of it."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

REFUSALS = {
    "SlowDown": ("503 Slow Down", "Please reduce your request rate."),
    "AccessDenied": ("403 Forbidden", "Access Denied"),
    "AuthorizationHeaderMalformed": ("400 Bad Request", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"),
}


@dataclass(frozen=True)
class Request:
    """What was asked: method, path with the query, and the range of bytes."""

    method: str
    path: str
    range: str


Fault = Callable[[Request], str | None]
"""What goes wrong with a request: a key of REFUSALS; `cut`, the connection breaks in the middle of the answer; `reset`, before the
request is heard; None, nothing."""


@dataclass
class ObjectStorage:
    """The server as tests use it. url: its endpoint. requests: all that were asked, in order. fault: see Fault."""

    url: str
    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None

    def keys(self, method: str) -> list[str]:
        """bucket/key of all requests of a method, in order."""
        return [each.path.partition("?")[0].strip("/") for each in self.requests if each.method == method]


class _Listening:
    """A WSGI application in front of moto's."""

    def __init__(self, app: Any, storage: ObjectStorage) -> None:
        self.app, self.storage, self.lock = app, storage, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ.get("RAW_URI", environ["PATH_INFO"])
        request = Request(environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE", ""))
        with self.lock:
            self.storage.requests.append(request)
            fault = self.storage.fault and self.storage.fault(request)
        if fault == "reset":
            _hang_up(environ)
        if fault in REFUSALS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, message = REFUSALS[fault]
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{fault}</Code><Message>{message}</Message></Error>".encode()]
        answer = self.app(environ, start_response)
        return _half(answer, environ) if fault == "cut" else answer


def _half(answer: Any, environ: dict[str, Any]) -> Iterator[bytes]:
    """The headers and half of the bytes, then the connection breaks."""
    whole = b"".join(answer)
    yield whole[: len(whole) // 2]
    _hang_up(environ)


def _hang_up(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError  # which werkzeug takes for the client's


class OftenFailing:
    """A fault that hits every tenth request that is not one asked again, and hits it twice: refused, then cut or reset.

    Counted by what is asked: connections are side by side, and by a count of all requests each try of one might be a tenth.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.asked: Counter[Request] = Counter()
        self.places: dict[Request, int] = {}
        self.failed = 0

    def __call__(self, request: Request) -> str | None:
        place = self.places.setdefault(request, len(self.places) + 1)
        self.asked[request] += 1
        if place % self.every or self.asked[request] > 2:
            return None
        self.failed += 1
        return "SlowDown" if self.asked[request] == 1 else "cut" if request.method == "GET" else "reset"


@contextmanager
def serve() -> Iterator[ObjectStorage]:
    """The server while the block runs, with an empty `s3://bucket`, as this process's fsspec finds it and as those that it starts do."""
    moto = pytest.importorskip("moto.server", reason="no moto here: pip install 'moto[server]'")
    pytest.importorskip("s3fs", reason="no s3fs here: pip install s3fs")
    import fsspec

    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage = ObjectStorage(f"http://{host}:{port}")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server._server.app = _Listening(server._server.app, storage)
    with pytest.MonkeyPatch.context() as patch:
        # as a user gives them; read when fsspec is imported, hence once more here
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", storage.url)
        patch.setenv("FSSPEC_S3_KEY", "someone")
        patch.setenv("FSSPEC_S3_SECRET", "secret")
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", "/nowhere/config")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # botocore would try again by itself, with waits of its own
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setitem(fsspec.config.conf, "s3", {})
        fsspec.config.set_conf_env(fsspec.config.conf)
        try:
            # moto keeps what it has for as long as the process lives, whatever server it is behind
            urllib.request.urlopen(f"{storage.url}/moto-api/reset", data=b"").close()
            fsspec.filesystem("s3").mkdir("bucket")
            storage.requests.clear()
            yield storage
        finally:
            fsspec.filesystem("s3").clear_instance_cache()
            server.stop()
