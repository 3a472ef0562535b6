"""The web application: the pages, and the JSON API that they use.

No request names a file: pages come from memory, pictures from the model. Nothing is written. What fails ends as one
sentence in JSON; the server's log has the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from diptych.eval.path_prefix import WithoutPrefix, without_slash
from diptych.eval.security_headers import SecurityHeaders
from diptych.model.errors import UserError
from diptych.model.packaged.model import Diptych
from diptych.model.serve.messages import (
    MOST_LETTERS,
    MOST_PICTURES,
    MOST_SAMPLES,
    Caption,
    CaptionQuery,
    CaptionReply,
    CodeReply,
    Limits,
    ModelReply,
    Painting,
    PaintingDefaults,
    PaintReply,
    PaintRequest,
    Problem,
    Step,
    Word,
)
from diptych.model.serve.model_queue import Busy, ClientGone, Ending, ModelQueue
from diptych.model.serve.uploads import UploadError, data_url, read_upload

MOST_WORDS = 300  # a vocabulary of more is not listed
LONGEST_JSON = 64 * 1024
DISCARDED = 4  # so many times the limit is read of an upload, so that its sender sees why it is refused
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
DESCRIPTION = """Captions pictures and paints sentences. Pictures are sent as they are, as the request's body, and come back
as PNG in data URLs. What fails has a JSON body with one sentence in "error"; when all places in the queue are taken, the
status is 503 and Retry-After says after how many seconds to ask again."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "The body or the picture is too large."},
    422: {"model": Problem, "description": "A value is wrong; the message names it."},
    503: {"model": Problem, "description": "The queue is full; see Retry-After."},
}


@dataclass(frozen=True)
class ServeOptions:
    """Attributes:
    queue: requests that may wait besides the one that is worked on.
    upload_bytes, pixels: of an uploaded picture, at most.
    upload_seconds: that an upload may take.
    examples: sentences that the page offers to begin with.
    root_path: that a proxy leaves before all addresses, as `diptych.eval.path_prefix.checked_prefix` returns it.
    """

    queue: int = 32
    upload_bytes: int = 10 * 1024 * 1024
    pixels: int = 25_000_000
    upload_seconds: float = 30.0
    examples: tuple[str, ...] = ()
    root_path: str = ""


def make_app(diptych: Diptych, options: ServeOptions | None = None) -> SecurityHeaders:
    """The ASGI application of one loaded model."""
    options = options or ServeOptions()
    queue = ModelQueue(options.queue)
    words = known_words(diptych)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(
        title="Diptych",
        description=DESCRIPTION,
        version="1",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        servers=[{"url": "."}],  # beside this document, whatever path a proxy has before it
        redirect_slashes=False,  # by an absolute address, which leaves a proxy's path out
        lifespan=lifespan,
        exception_handlers={
            StarletteHTTPException: refuse,
            RequestValidationError: refuse_values,
            Busy: send_away,
            ClientGone: say_nothing,
            Ending: say_farewell,
            Exception: fail,
        },
    )
    for path, (name, media_type) in STATIC.items():
        app.add_api_route(
            path, static_file(name, media_type), methods=["GET", "HEAD"], include_in_schema=False
        )

    @app.get("/api/model", tags=["model"], summary="The model, its options and limits")
    async def model() -> ModelReply:
        painting = diptych.config.painting
        return ModelReply(
            name=diptych.folder.name,
            image_size=diptych.image_size,
            grid_size=diptych.grid_size,
            codebook_size=diptych.codebook_size,
            has_scorer=diptych.has_scorer,
            has_examples=diptych.has_examples,
            painting=PaintingDefaults(
                method=painting.method,
                steps=painting.steps,
                temperature=painting.temperature,
                guidance=painting.guidance,
            ),
            words=words,
            examples=list(options.examples),
            limits=Limits(
                letters=MOST_LETTERS,
                samples=MOST_SAMPLES,
                pictures=MOST_PICTURES,
                steps=diptych.grid_size**2,
                upload_bytes=options.upload_bytes,
                pixels=options.pixels,
                queue=options.queue,
            ),
            waiting=queue.taken,
        )

    @app.post(
        "/api/paint",
        tags=["use"],
        summary="Paint a sentence",
        responses={**REFUSALS, 415: {"model": Problem, "description": "The body is no JSON."}},
        openapi_extra=body_of("application/json", PaintRequest.model_json_schema()),
    )
    async def paint(request: Request) -> PaintReply:
        check_media_type(
            request, ("application/json",), "send a JSON object, with Content-Type: application/json"
        )
        with queue.place():
            content = await read_body(request, LONGEST_JSON, options.upload_seconds)
            wanted = read_wanted(content)
            check_wanted(diptych, wanted)
            return await queue.run(lambda: painted(diptych, wanted), request.is_disconnected)

    @app.post(
        "/api/caption",
        tags=["use"],
        summary="Caption the picture in the body",
        responses={**REFUSALS, 415: {"model": Problem, "description": "The body is no picture."}},
        openapi_extra=body_of("image/*", {"type": "string", "format": "binary"}),
    )
    async def caption(wanted: Annotated[CaptionQuery, Query()], request: Request) -> CaptionReply:
        check_scorer(diptych, wanted.rerank)
        check_media_type(
            request,
            ("image/", "application/octet-stream"),
            "send the picture itself as the request's body, with Content-Type: image/jpeg (or another image type)",
        )
        with queue.place():
            content = await read_body(request, options.upload_bytes, options.upload_seconds)
            return await queue.run(
                lambda: captioned(diptych, content, options.pixels, wanted), request.is_disconnected
            )

    @app.get(
        "/api/codes/{code}",
        tags=["model"],
        summary="What a code looks like",
        responses={
            404: {"model": Problem, "description": "No such code, or the package has no examples."},
            422: {"model": Problem, "description": "The code is no whole number."},
        },
    )
    def code_examples(code: int) -> CodeReply:
        if not diptych.has_examples:
            raise HTTPException(404, "this package has no examples of its codes")
        if not 0 <= code < diptych.codebook_size:
            raise HTTPException(
                404, f"there is no code {code}; codes are from 0 to {diptych.codebook_size - 1}"
            )
        return CodeReply(code=code, examples=[data_url(image) for image in diptych.examples(code)])

    # last: what ends in a slash and is nothing by itself
    app.add_api_route("/{path:path}/", without_slash, methods=["GET", "HEAD", "POST"], include_in_schema=False)
    return SecurityHeaders(WithoutPrefix(app, options.root_path), HEADERS)


def known_words(diptych: Diptych) -> list[str] | None:
    """The words of the vocabulary, where they are few enough to read."""
    vocabulary = diptych.tokenizer.vocabulary
    words = sorted(word for word in vocabulary if word.isalpha() and (len(word) > 1 or word == "a"))
    return words if len(words) <= MOST_WORDS else None


def body_of(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The part of the OpenAPI document on a body that is read here: only so much of it as is taken."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def static_file(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    """A route that answers with a file of the package, read once."""
    content = resources.files(__package__).joinpath("static", name).read_bytes()

    async def reply() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return reply


# What a request asks for


def check_wanted(diptych: Diptych, wanted: PaintRequest) -> None:
    """Refuse what this package cannot paint.

    Raises:
        HTTPException: 422.
    """
    check_scorer(diptych, wanted.rerank)
    cells = diptych.grid_size**2
    if wanted.steps is not None and wanted.steps > cells:
        raise HTTPException(422, f"steps: at most {cells}, one for each cell")
    steps = wanted.steps or diptych.config.painting.steps
    if wanted.return_steps and wanted.samples * (steps + 1) > MOST_PICTURES:
        raise HTTPException(
            422,
            f"return_steps: {wanted.samples} paintings with {steps} steps are over {MOST_PICTURES} pictures; take fewer",
        )


def check_scorer(diptych: Diptych, rerank: bool) -> None:
    """Refuse to rerank without a scorer.

    Raises:
        HTTPException: 422.
    """
    if rerank and not diptych.has_scorer:
        raise HTTPException(422, "rerank: this package has no scorer")


def check_media_type(request: Request, kinds: tuple[str, ...], message: str) -> None:
    """Refuse other bodies, above all forms and text, which a page of another site could send without asking the browser.

    Raises:
        HTTPException: 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith(kinds):
        raise HTTPException(415, message)


def read_wanted(content: bytes) -> PaintRequest:
    """Parse a request to paint.

    Raises:
        RequestValidationError: a value is wrong.
    """
    try:
        return PaintRequest.model_validate_json(content)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_context=False)]
        raise RequestValidationError(found) from None


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """Read a request's body; of one that is too large nothing is kept.

    Raises:
        HTTPException: 413, it has more than ``most`` bytes; 408, it takes too long.
    """
    too_large = HTTPException(413, f"the body has more than {most / 2**20:.3g} MiB; make it smaller")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > DISCARDED * most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                else:
                    parts.clear()
                if size > DISCARDED * most:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {seconds:g} seconds; send it again") from None
    if size > most:
        raise too_large
    return b"".join(parts)


# What the model does, on the queue's thread


def painted(diptych: Diptych, wanted: PaintRequest) -> PaintReply:
    """Paint a sentence.

    Raises:
        HTTPException: 422, the model cannot do this.
    """
    start = time.perf_counter()
    changes: dict[str, Any] = {}
    if wanted.steps is not None:
        changes |= {"method": "mask_predict", "steps": wanted.steps}
    changes |= {
        name: value for name in ("temperature", "guidance") if (value := getattr(wanted, name)) is not None
    }
    try:
        found = diptych.paint(
            wanted.caption,
            samples=wanted.samples,
            rerank=wanted.rerank,
            seed=wanted.seed,
            return_steps=wanted.return_steps,
            codes=wanted.codes,
            locked=wanted.locked,
            repaint=wanted.repaint,
            **changes,
        )
    except UserError as error:
        raise cannot(diptych, error) from None
    return PaintReply(
        paintings=[
            Painting(
                image=data_url(painting.image),
                codes=painting.codes.tolist(),
                seed=painting.seed,
                sample=painting.sample,
                score=painting.score,
                steps=[
                    Step(image=data_url(step.image), codes=step.codes.tolist()) for step in painting.steps
                ],
            )
            for painting in found
        ],
        notes=reading_notes(diptych, wanted.caption),
        seconds=round(time.perf_counter() - start, 3),
    )


def reading_notes(diptych: Diptych, caption: str) -> list[str]:
    """What of a sentence is not read as it stands."""
    tokenizer, room = diptych.tokenizer, diptych.config.captioning.length - 2
    pieces = [piece for piece in tokenizer.pieces([caption])[0] if piece != tokenizer.stop]
    notes = []
    if len(pieces) > room:
        notes.append(f"The sentence is too long for the model, which reads its first {room} word pieces.")
    if tokenizer.unk in pieces:
        notes.append("The model cannot read some of the characters.")
    return notes


def captioned(diptych: Diptych, content: bytes, pixels: int, wanted: CaptionQuery) -> CaptionReply:
    """Caption an uploaded picture.

    Raises:
        HTTPException: it is no picture, damaged or too large, or the model cannot do this.
    """
    start = time.perf_counter()
    try:
        image = read_upload(content, pixels)
    except UploadError as error:
        raise HTTPException(error.status, str(error)) from None
    changes: dict[str, Any] = {} if wanted.temperature is None else {"temperature": wanted.temperature}
    try:
        found = diptych.caption(
            image,
            samples=wanted.samples,
            rerank=wanted.rerank,
            seed=wanted.seed,
            return_attention=wanted.attention,
            **changes,
        )
    except UserError as error:
        raise cannot(diptych, error) from None
    return CaptionReply(
        captions=[
            Caption(
                text=caption.text,
                log_probability=caption.log_probability,
                sample=caption.sample,
                score=caption.score,
                words=None
                if caption.attention is None
                else [
                    Word(word=word, cells=[round(weight, 5) for weight in weights.tolist()])
                    for word, weights in zip(caption.attention.words, caption.attention.weights, strict=True)
                ],
            )
            for caption in found
        ],
        width=image.width,
        height=image.height,
        seconds=round(time.perf_counter() - start, 3),
    )


def cannot(diptych: Diptych, error: UserError) -> HTTPException:
    """A UserError as a refusal that does not tell where the package lies."""
    return HTTPException(422, str(error).replace(str(diptych.folder), "the package"))


# What cannot be answered


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
