"""Web applications behind a proxy under a path, such as `/diptych`: the human study, and the web demo in diptych.model.

All addresses in their pages and replies are relative, and the path itself may be there or not.
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from diptych.eval.errors import UserError


class WithoutPrefix:
    """An application whose addresses may have `prefix` before them. All addresses in pages and replies are relative, so
    that a proxy may as well take it away itself; what comes without it is answered too."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        """`prefix`: "" or as `checked_prefix` returns it."""
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if self.prefix and path == self.prefix and scope["type"] == "http":
            # without the slash, relative addresses of the page would lead beside it
            location = {"Location": f"{quote(self.prefix.rpartition('/')[2])}/"}
            await Response(status_code=307, headers=location)(scope, receive, send)
            return
        if self.prefix and path.startswith(f"{self.prefix}/"):
            scope = {**scope, "path": path.removeprefix(self.prefix)}
        await self.app(scope, receive, send)


def checked_prefix(path: str) -> str:
    """`path` with a slash before it and none behind; "" where it is empty or `/`.

    Raises:
        UserError: it is no path.
    """
    names = path.strip("/").split("/")
    if names == [""]:
        return ""
    if any(name in ("", ".", "..") or set(name) & set("?#%\\ ") or not name.isprintable() for name in names):
        raise UserError(f"--root-path {path!r}: no path of an address; give one such as /diptych")
    return "/" + "/".join(names)


async def without_slash(request: Request) -> Response:
    """Lead to the same address without the slash at its end, relative to it: Starlette's own way has the host in it."""
    name = request.scope["path"].removesuffix("/").rpartition("/")[2]
    query = f"?{request.url.query}" if request.url.query else ""
    return Response(status_code=307, headers={"Location": f"../{quote(name, safe='')}{query}"})
