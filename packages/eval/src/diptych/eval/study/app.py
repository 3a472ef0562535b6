"""The study as a web application: annotators' and admin's pages behind unguessable links.

No request names a file: pictures come from the study by opaque tokens, style and script from memory.
"""

from __future__ import annotations

import json
import math
import sqlite3
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from diptych.eval.path_prefix import WithoutPrefix, without_slash
from diptych.eval.security_headers import SecurityHeaders
from diptych.eval.study.figure import TITLES, draw_figure
from diptych.eval.study.results import answers_csv, tally
from diptych.eval.study.store import Annotator, Asked, Study
from diptych.eval.study.vocabulary import normal_answer

LONGEST_BODY = 4096
LONGEST_WORD = 40
OUT_OF_TURN = "This answer is out of turn. Please open your link again."
_LIVE_RESAMPLES = 1000
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def make_app(study: Study, prefix: str = "") -> SecurityHeaders:
    """The ASGI application of one study.

    prefix: a path that a proxy leaves before all addresses, as `checked_prefix` returns it. All of them are relative, so that
    a proxy that takes its path away needs none.
    """
    pages = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    static = resources.files(__package__).joinpath("static")

    def static_file(name: str, media_type: str) -> Route:
        content = static.joinpath(name).read_bytes()

        def reply(request: Request) -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=300"})

        return Route(f"/{name}", reply)

    def page(request: Request, template: str, code: int = 200, **values: Any) -> Response:
        text = pages.get_template(template).render(title=study.title, root=_root(request), **values)
        return Response(text, code, media_type="text/html")

    def annotator_of(request: Request) -> Annotator:
        annotator = study.annotator(request.path_params["token"])
        if annotator is None:
            raise HTTPException(404)
        return annotator

    def for_admin(request: Request) -> None:
        if not study.is_admin(request.path_params["token"]):
            raise HTTPException(404)

    def welcome(request: Request) -> Response:
        annotator = annotator_of(request)
        upcoming, first = study.next_question(annotator), study.question(annotator, 0)
        total = first.total if first else 0
        done = total if upcoming is None else upcoming.position
        return page(
            request, "welcome.html.j2", annotator=annotator, done=done, total=total, kinds=study.kinds()
        )

    def question(request: Request) -> Response:
        annotator = annotator_of(request)
        asked = study.next_question(annotator)
        if asked is None:
            return page(request, "end.html.j2", annotator=annotator, last=study.last_question(annotator))
        return question_page(request, annotator, asked)

    def back(request: Request) -> Response:
        annotator = annotator_of(request)
        asked = study.last_question(annotator)
        if asked is None:
            return RedirectResponse("question", 303)  # beside this address
        return question_page(request, annotator, asked)

    def question_page(request: Request, annotator: Annotator, asked: Asked) -> Response:
        item = asked.item
        caption = item.caption
        if item.check and item.kind == "semantics":
            caption = caption.replace("{picture}", "1" if asked.system_first else "2")
        coming = study.question(annotator, asked.position + 1)
        return page(
            request,
            "word.html.j2" if item.kind == "hummus" else "pair.html.j2",
            annotator=annotator,
            asked=asked,
            before=caption[: item.start],
            after=caption[item.end :],
            blanks=len(caption[item.start : item.end].split()),
            caption=caption,
            # the browser fetches the next pictures while these are looked at
            coming=" ".join(coming.pictures) if coming else "",
            may_go_back=asked.revision == 0 and study.last_question(annotator) is not None,
            longest=LONGEST_WORD,
        )

    async def answer(request: Request) -> Response:
        fields = await _fields(request)
        return await run_in_threadpool(keep_answer, request, fields)

    def keep_answer(request: Request, fields: dict[str, str]) -> Response:
        annotator = annotator_of(request)
        position, revision = _whole(fields, "question"), _whole(fields, "revision")
        # before what is asked: an answer that comes in between is then seen as one that was sent twice
        turn = study.last_question(annotator) if revision else study.next_question(annotator)
        asked = study.question(annotator, position)
        if asked is None:
            raise HTTPException(400, "There is no such question.")
        if revision >= asked.revision and (turn is None or turn.id != asked.id):
            raise HTTPException(400, OUT_OF_TURN)
        try:
            study.add_answer(asked, revision, _checked_answer(asked, fields), _seconds(fields))
        except ValueError:
            raise HTTPException(400, OUT_OF_TURN) from None
        except sqlite3.Error:  # a full disk, a lock that stays
            raise HTTPException(503, "The answer could not be saved. Please try again.") from None
        return RedirectResponse("question", 303)  # beside this address

    def picture(request: Request) -> Response:
        png = study.picture(request.path_params["token"])
        if png is None:
            raise HTTPException(404)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    def admin(request: Request) -> Response:
        for_admin(request)
        return page(
            request,
            "admin.html.j2",
            results=tally(study, resamples=_LIVE_RESAMPLES),
            # where no script runs; admin.js has what the browser knows
            base=f"{str(request.base_url).rstrip('/')}{prefix}/",
            links={one.name: one.token for one in study.annotators()},
            token=study.admin_token,
            kind_titles=TITLES,
        )

    def csv_export(request: Request) -> Response:
        for_admin(request)
        return Response(answers_csv(study), media_type="text/csv", headers=_attachment("answers.csv"))

    def json_export(request: Request) -> Response:
        for_admin(request)
        text = json.dumps(tally(study).as_json(), indent=1)
        return Response(text, media_type="application/json", headers=_attachment("results.json"))

    def svg_figure(request: Request) -> Response:
        for_admin(request)
        svg = draw_figure(tally(study, resamples=_LIVE_RESAMPLES), "svg")
        # its styles are inline, which the policy of these pages forbids where a browser shows it alone
        return Response(svg, media_type="image/svg+xml", headers=_attachment("figure.svg"))

    def png_figure(request: Request) -> Response:
        for_admin(request)
        return Response(draw_figure(tally(study), "png"), media_type="image/png")

    def known_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = error.detail if error.status_code in (400, 413, 503) else ""
        return page(request, "error.html.j2", error.status_code, detail=detail, status=error.status_code)

    def failure(request: Request, error: Exception) -> Response:
        return page(request, "error.html.j2", 500, detail="", status=500)

    app = Starlette(
        routes=[
            Route("/s/{token}", welcome),
            Route("/s/{token}/question", question),
            Route("/s/{token}/back", back),
            Route("/s/{token}/answer", answer, methods=["POST"]),
            Route("/p/{token}", picture),
            Route("/a/{token}", admin),
            Route("/a/{token}/answers.csv", csv_export),
            Route("/a/{token}/results.json", json_export),
            Route("/a/{token}/figure.svg", svg_figure),
            Route("/a/{token}/figure.png", png_figure),
            static_file("study.css", "text/css"),
            static_file("study.js", "text/javascript"),
            static_file("admin.js", "text/javascript"),
            static_file("study.svg", "image/svg+xml"),
            *(
                Route(f"{path}/", without_slash)
                for path in ("/s/{token}", "/s/{token}/question", "/a/{token}")
            ),
        ],
        exception_handlers={HTTPException: known_error, Exception: failure},
    )
    app.router.redirect_slashes = False
    return SecurityHeaders(WithoutPrefix(app, prefix), _HEADERS)


def _root(request: Request) -> str:
    """The relative address of the study's root, as seen from the page that answers."""
    return "../" * (request.scope["path"].count("/") - 1) or "./"


async def _fields(request: Request) -> dict[str, str]:
    """The form's fields; a body of more than 4 KiB is refused before it is read."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413, "This answer is too long.")
    try:
        parsed = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=10, errors="strict")
    except ValueError:
        raise HTTPException(400, "This answer could not be read.") from None
    return {name: values[-1] for name, values in parsed.items()}


def _whole(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise HTTPException(400, "This answer could not be read.")
    return int(text)


def _seconds(fields: dict[str, str]) -> float | None:
    """How long the question was looked at, where the browser says so; nothing hangs on it."""
    try:
        seconds = float(fields.get("seconds", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= 86_400 else None


def _checked_answer(asked: Asked, fields: dict[str, str]) -> str:
    text = fields.get("answer", "").strip()
    if asked.item.kind != "hummus":
        if text not in ("first", "second", "tie"):
            raise HTTPException(400, "Please choose one of the pictures, or that they are about the same.")
        return text
    if len(text) > LONGEST_WORD:
        raise HTTPException(400, f"Please type one word of at most {LONGEST_WORD} letters.")
    if not text.isprintable() or not normal_answer(text):
        raise HTTPException(400, "Please type the word that is missing; a guess will do.")
    return text


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
