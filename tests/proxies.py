"""Proxies that have an application under a path."""

from __future__ import annotations

PREFIX = "/lab/diptych"


class TakesAway:
    """A proxy that passes on what is below PREFIX, without it, and is asked for nothing else."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(f"{PREFIX}/"), f"asked for {scope['path']}, which others answer"
            scope = {**scope, "path": scope["path"].removeprefix(PREFIX)}
        await self.app(scope, receive, send)
