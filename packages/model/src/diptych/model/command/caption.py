"""``diptych caption``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
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
from diptych.model.errors import UserError

if TYPE_CHECKING:
    from diptych.model import Caption

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}


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
    sources = list(found(pictures))
    live = any(source is None for source in sources)  # from stdin: answer each line as it comes
    d = load_model(model, device, precision)
    from tqdm import tqdm

    options = given(
        samples=samples, method=method, temperature=temperature, top_p=top_p, beams=beams, start=start
    )
    options |= {"seed": seed, "rerank": rerank or None}
    failed = False
    names = (name for source in sources for name in (stdin_lines() if source is None else (source,)))
    few = not live and len(sources) < 2
    with tqdm(
        total=None if live else len(sources), desc="caption", unit="picture", disable=True if few else None
    ) as bar:
        for batch in batches(names, 1 if live else batch_size):
            readable, images, problems = [], [], {}
            for name in batch:
                try:
                    images.append(read(name))
                    readable.append(name)
                except UserError as error:
                    problems[name] = str(error)
            captions = d.caption(images, batch_size=batch_size, **options) if images else []
            each = len(captions) // max(1, len(images))
            own = {
                name: captions[each * number : each * number + each] for number, name in enumerate(readable)
            }
            for name in batch:
                failed |= name in problems
                for line, stream in lines(name, own.get(name, []), problems.get(name), as_json):
                    bar.write(line, file=stream)
                    stream.flush()
            bar.update(len(batch))
    if failed:
        raise typer.Exit(1)


def found(names: list[str]) -> Iterator[str | None]:
    """The files that arguments name, folders by all pictures below them in the order of their names; None is stdin.

    Raises:
        UserError: a folder has no picture.
    """
    for name in names:
        folder = Path(name)
        if name == "-":
            yield None
        elif folder.is_dir():
            files = sorted(
                path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()
            )
            if not files:
                raise UserError(
                    f"{name}: no picture below this folder (endings: {' '.join(sorted(ENDINGS))})"
                )
            yield from map(str, files)
        else:
            yield name


def stdin_lines() -> Iterator[str]:
    """Lines of stdin as they arrive, without those that are empty."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def batches(names: Iterator[str], size: int) -> Iterator[list[str]]:
    """``names``, ``size`` at a time."""
    batch: list[str] = []
    for name in names:
        batch.append(name)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read(name: str) -> Any:
    """One picture, decoded."""
    from diptych.model.packaged.pictures import read_picture

    return read_picture(name)


def lines(
    name: str, captions: list[Caption], problem: str | None, as_json: bool
) -> Iterator[tuple[str, Any]]:
    """What to print of one picture, and where to."""
    if as_json:
        answer: dict[str, Any] = {"image": name}
        if problem is not None:
            answer["error"] = problem
        else:
            answer["captions"] = [
                given(text=one.text, log_probability=one.log_probability, score=one.score) for one in captions
            ]
        yield json.dumps(answer, ensure_ascii=False), sys.stdout
    elif problem is not None:
        yield f"diptych: {problem}", sys.stderr
    else:
        for one in captions:
            yield f"{name}\t{one.text}", sys.stdout
