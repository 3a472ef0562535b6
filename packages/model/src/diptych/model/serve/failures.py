"""What cannot be answered: each failure as one sentence in JSON; the server's log has the rest."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from diptych.model.serve.model_queue import Busy


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """One sentence in JSON."""
    return JSONResponse({"error": message}, status, headers)


async def refuse(request: Request, error: Exception) -> Response:
    """An HTTP error."""
    assert isinstance(error, StarletteHTTPException)
    message = error.detail
    if error.status_code == 404 and message == "Not Found":
        message = "there is nothing at this address; /docs lists what there is"
    return problem(error.status_code, str(message), dict(error.headers or {}))


async def refuse_values(request: Request, error: Exception) -> Response:
    """Values that are missing or wrong: the first of them, by name."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return problem(422, "the body is not valid JSON")
    if first["type"] == "extra_forbidden":
        reason = "there is no such option"
    name = ".".join(str(part) for part in first["loc"][1:])[:100]  # the first says body, query or path
    return problem(422, f"{name}: {reason[:1].lower()}{reason[1:]}" if name else reason)


async def send_away(request: Request, error: Exception) -> Response:
    """No place in the queue."""
    assert isinstance(error, Busy)
    seconds = error.retry_after
    return problem(
        503,
        f"the model is busy and everybody has to wait: try again in {seconds} second{'s' * (seconds != 1)}",
        {"Retry-After": str(seconds)},
    )


async def say_nothing(request: Request, error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)


async def say_farewell(request: Request, error: Exception) -> Response:
    """The server ends."""
    return problem(503, "the server has been stopped; ask again when it runs")


async def fail(request: Request, error: Exception) -> Response:
    """A failure of ours; the traceback goes to the log."""
    return problem(500, "something went wrong here; the server's log tells more")
