"""``diptych caption``."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.features.picture_folders import ENDINGS, find_pictures
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

LENIENT = "diptych_file_names"  # how names are written that are not UTF-8


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


def as_their_bytes() -> None:
    """Read and write names of files that are no UTF-8 as the bytes that they are, so that other programs find them."""
    codecs.register_error(LENIENT, _file_name_bytes)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, LENIENT)):
        if isinstance(stream, io.TextIOWrapper):  # what somebody put in its place may be no file
            stream.reconfigure(errors=errors)


def _file_name_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """What to write of characters that cannot be encoded: a name's bytes, or, where they are none, an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def found(names: list[str]) -> Iterator[str | None]:
    """The files that arguments name, folders by all pictures below them in the order of their names; None is stdin.

    What is left out of a folder is counted in one line on stderr.

    Raises:
        UserError: a folder has no picture.
    """
    for name in names:
        folder = Path(name)
        if name == "-":
            yield None
        elif folder.is_dir():
            pictures = find_pictures(folder)
            if not pictures.files:
                also = f"; {pictures.remark}" if pictures.remark else ""
                raise UserError(
                    f"{name}: no picture below this folder (endings: {' '.join(sorted(ENDINGS))}){also}"
                )
            if pictures.remark:
                print(f"diptych: {name}: {pictures.remark}", file=sys.stderr)
            yield from (str(folder / file) for file in pictures.files)
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
        answer: dict[str, Any] = {"image": readable_name(name)}
        if answer["image"] != name:  # JSON is text; here is what the file system calls it
            answer["image_bytes"] = os.fsencode(name).hex()
        if problem is not None:
            answer["error"] = readable_name(problem)
        else:
            answer["captions"] = [
                given(text=one.text, log_probability=one.log_probability, score=one.score) for one in captions
            ]
        utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
        yield json.dumps(answer, ensure_ascii=not utf8), sys.stdout  # escapes of our own would be no JSON
    elif problem is not None:
        yield f"diptych: {problem}", sys.stderr
    else:
        for one in captions:
            yield f"{name}\t{one.text}", sys.stdout


def readable_name(name: str) -> str:
    """A name with U+FFFD for each byte that is not UTF-8."""
    return os.fsencode(name).decode(errors="replace") if has_surrogates(name) else name


def has_surrogates(text: str) -> bool:
    """Whether a text holds what is no character: bytes of a name that is not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)
