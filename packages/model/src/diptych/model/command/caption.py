"""``diptych caption``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.model.command.options import (
    BatchSize,
    Device,
    Json,
    Model,
    Precision,
    Seed,
    given,
    load_model,
)
from diptych.model.command.pictures import Line, as_their_bytes, found, go_through, json_line, named

if TYPE_CHECKING:
    from diptych.model import Caption


def caption(
    pictures: Annotated[
        list[str],
        typer.Argument(
            help="Picture files; folders, for all pictures below them; - reads one path a line from stdin.",
            show_default=False,
        ),
    ],
    model: Model = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Captions of each picture.")] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Only the one that the scorer likes best.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="greedy, sample or beam.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; above 0.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest words of this share.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option(help="Search the likeliest caption, so many at a time.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="Words that every caption begins with.")] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    device: Device = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Caption pictures: a line each, PATH, a tab, the caption, as soon as it is written.

    A picture that cannot be read is reported, and the others are captioned; the status is then 1.
    """
    as_their_bytes()
    sources = list(found(pictures))
    d = load_model(model, device, precision)
    options = given(
        samples=samples, method=method, temperature=temperature, top_p=top_p, beams=beams, start=start
    )
    options |= {"seed": seed, "rerank": rerank or None}

    def work(names: list[str], images: list[Any]) -> list[list[Caption]]:
        captions = d.caption(images, batch_size=batch_size, **options)
        each = len(captions) // len(images)
        return [captions[first : first + each] for first in range(0, len(captions), each)]

    if not go_through(
        sources, batch_size, "caption", work, lambda name, own: lines(name, own, as_json), as_json
    ):
        raise typer.Exit(1)


def lines(name: str, captions: list[Caption], as_json: bool) -> Iterator[Line]:
    """What to print of the captions of one picture, and where to."""
    if as_json:
        texts = [
            given(text=one.text, log_probability=one.log_probability, score=one.score) for one in captions
        ]
        yield json_line({**named(name), "captions": texts})
    else:
        for one in captions:
            yield f"{name}\t{one.text}", sys.stdout
