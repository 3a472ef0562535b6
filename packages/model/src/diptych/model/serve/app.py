"""The web application: the pages, and the JSON API that they use.

No request names a file: pages come from memory, pictures from the model. Nothing is written. What fails ends as one
sentence in JSON; the server's log has the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from diptych.eval.path_prefix import WithoutPrefix, without_slash
from diptych.eval.security_headers import SecurityHeaders
from diptych.model.errors import UserError
from diptych.model.packaged.model import Diptych
from diptych.model.packaged.scoring import chooses
from diptych.model.serve.failures import (
    fail,
    refuse,
    refuse_values,
    say_farewell,
    say_nothing,
    send_away,
)
from diptych.model.serve.messages import (
    MOST_LETTERS,
    MOST_PICTURES,
    MOST_QUESTIONS,
    MOST_SAMPLES,
    AnswerQuery,
    AnswerReply,
    CaptioningDefaults,
    CaptionQuery,
    CaptionReply,
    CodeReply,
    Limits,
    ModelReply,
    PaintingDefaults,
    PaintReply,
    PaintRequest,
    Problem,
)
from diptych.model.serve.model_queue import Busy, ClientGone, Ending, ModelQueue, UploadMemory
from diptych.model.serve.results import answered, cannot, captioned, changes_of, painted
from diptych.model.serve.uploads import data_url

MOST_WORDS = 300  # a vocabulary of more is not listed
LONGEST_JSON = 64 * 1024
DISCARDED = 4  # so many times the limit is read of an upload, so that its sender sees why it is refused
Result = TypeVar("Result")
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
    "/caption.js": ("caption.js", "text/javascript; charset=utf-8"),
    "/answer.js": ("answer.js", "text/javascript; charset=utf-8"),
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
DESCRIPTION = """Captions pictures, paints sentences and answers questions about pictures. Pictures are sent as they are, as the request's body, and come back
as PNG in data URLs. What fails has a JSON body with one sentence in "error"; when all places in the queue are taken, the
status is 503 and Retry-After says after how many seconds to ask again."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The body took too long to come."},
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
    questions: questions that it offers.
    """

    queue: int = 32
    upload_bytes: int = 10 * 1024 * 1024
    pixels: int = 25_000_000
    upload_seconds: float = 30.0
    examples: tuple[str, ...] = ()
    root_path: str = ""
    questions: tuple[str, ...] = ()


def make_app(diptych: Diptych, options: ServeOptions | None = None) -> SecurityHeaders:
    """The ASGI application of one loaded model."""
    options = options or ServeOptions()
    queue = ModelQueue(options.queue)
    memory = UploadMemory(queue.places * options.upload_bytes)
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

    @asynccontextmanager
    async def body_of_request(request: Request, most: int) -> AsyncIterator[bytes]:
        """The body of a request for which there is a place; its bytes count until the block ends."""
        queue.check_free()
        with memory.share() as count:
            yield await read_body(request, most, options.upload_seconds, count)

    async def with_picture(request: Request, work: Callable[[bytes], Result]) -> Result:
        """What the model makes of the picture in the body."""
        async with body_of_request(request, options.upload_bytes) as content:
            with queue.place():
                return await queue.run(lambda: work(content), request.is_disconnected)

    @app.get("/api/model", tags=["model"], summary="The model, its options and limits")
    async def model() -> ModelReply:
        painting, captioning = diptych.config.painting, diptych.config.captioning
        return ModelReply(
            name=diptych.folder.name,
            image_size=diptych.image_size,
            grid_size=diptych.grid_size,
            codebook_size=diptych.codebook_size,
            has_scorer=diptych.has_scorer,
            has_examples=diptych.has_examples,
            can_answer=diptych.can_answer,
            painting=PaintingDefaults(
                method=painting.method,
                steps=painting.steps,
                step_count=diptych.parts.paintings.step_count(painting),
                temperature=painting.temperature,
                guidance=painting.guidance,
            ),
            captioning=CaptioningDefaults(method=captioning.method, temperature=captioning.temperature),
            words=words,
            examples=list(options.examples),
            questions=list(options.questions) if diptych.can_answer else [],
            limits=Limits(
                letters=MOST_LETTERS,
                samples=MOST_SAMPLES,
                questions=MOST_QUESTIONS,
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
        async with body_of_request(request, LONGEST_JSON) as content:
            wanted = read_wanted(content)
            check_wanted(diptych, wanted)
            with queue.place():
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
        check_picture_type(request)
        return await with_picture(
            request, lambda content: captioned(diptych, content, options.pixels, wanted)
        )

    @app.post(
        "/api/answer",
        tags=["use"],
        summary="Answer questions about the picture in the body",
        responses={**REFUSALS, 415: {"model": Problem, "description": "The body is no picture."}},
        openapi_extra=body_of("image/*", {"type": "string", "format": "binary"}),
    )
    async def answer(wanted: Annotated[AnswerQuery, Query()], request: Request) -> AnswerReply:
        check_answers(diptych)
        check_picture_type(request)
        return await with_picture(request, lambda content: answered(diptych, content, options.pixels, wanted))

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
    app.add_api_route(
        "/{path:path}/", without_slash, methods=["GET", "HEAD", "POST"], include_in_schema=False
    )
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
    try:
        options = diptych.paint_options(wanted.samples, **changes_of(wanted))
    except UserError as error:
        raise cannot(diptych, error) from None
    count = 1 if chooses(wanted.rerank, wanted.samples, options.samples) else options.samples
    steps = diptych.parts.paintings.step_count(options)
    if wanted.return_steps and count * (steps + 1) > MOST_PICTURES:
        raise HTTPException(
            422,
            f"return_steps: {count} paintings with {steps} steps are over {MOST_PICTURES} pictures; take fewer",
        )


def check_scorer(diptych: Diptych, rerank: bool | None) -> None:
    """Refuse to rerank without a scorer.

    Raises:
        HTTPException: 422.
    """
    if rerank and not diptych.has_scorer:
        raise HTTPException(422, "rerank: this package has no scorer")


def check_answers(diptych: Diptych) -> None:
    """Refuse to answer without an answer head.

    Raises:
        HTTPException: 422.
    """
    if not diptych.can_answer:
        raise HTTPException(422, "this package has no answer head: its model captions and paints only")


def check_picture_type(request: Request) -> None:
    """Refuse bodies that are no picture (:func:`check_media_type`).

    Raises:
        HTTPException: 415.
    """
    check_media_type(
        request,
        ("image/", "application/octet-stream"),
        "send the picture itself as the request's body, with Content-Type: image/jpeg (or another image type)",
    )


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


async def read_body(request: Request, most: int, seconds: float, count: Callable[[int], None]) -> bytes:
    """Read a request's body; of one that is too large nothing is kept. ``count`` is told how many bytes are.

    Raises:
        Busy: ``count`` has no room for them.
        HTTPException: 413, it has more than ``most`` bytes; 408, it takes too long.
        ClientGone: it breaks off.
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
                    count(len(part))
                    parts.append(part)
                else:
                    parts.clear()
                if size > DISCARDED * most:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {seconds:g} seconds; send it again") from None
    except ClientDisconnect:
        raise ClientGone from None
    if size > most:
        raise too_large
    return b"".join(parts)
