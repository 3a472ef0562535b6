"""``diptych paint``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.features.text_files import whole_characters
from diptych.model.command.options import Device, Json, Model, Precision, Seed, given, load_model
from diptych.model.command.pictures import (
    Line,
    as_their_bytes,
    json_line,
    named,
    readable_name,
    stdin_lines,
)
from diptych.model.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def paint(
    captions: Annotated[
        list[str],
        typer.Argument(help="What to paint; - reads one caption a line from stdin.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write; several paintings are OUT-1.png, OUT-2.png, ..."),
    ] = Path("painting.png"),
    model: Model = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Paintings of each caption.")] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Only the one that the scorer likes best.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="mask_predict, random, easiest, rows or gibbs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of mask_predict.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest codes.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest codes of this share.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the caption.")] = None,
    save_steps: Annotated[
        bool, typer.Option("--save-steps", help="Also write each step, as OUT-step-1.png, ...")
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=1, max=8192, help="Pixels a side to enlarge the painting to.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Paint captions into picture files, and print the files' names as soon as they are written.

    Where captions come from stdin, one that cannot be painted is reported and the others are painted; the status is then 1.
    """
    as_their_bytes()
    check_ending(output)
    live = "-" in captions
    d = load_model(model, device, precision)
    options = given(
        samples=samples,
        method=method,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
    )
    options |= {"seed": seed, "rerank": rerank or None, "return_steps": save_steps}
    number, failed = 0, False
    for caption in texts(captions):
        try:
            paintings = d.paint(caption, **options)
        except UserError as error:
            if not live:
                raise
            failed = True
            say(
                json_line({"caption": whole_characters(caption), "error": str(error)})
                if as_json
                else (f"diptych: {error}", sys.stderr)
            )
            continue
        several = live or len(captions) > 1 or len(paintings) > 1
        for painting in paintings:
            number += 1
            file = numbered(output, f"-{number}") if several else output
            write(painting.image, file, size)
            step_files = []
            for count, step in enumerate(painting.steps, start=1):
                step_files.append(str(numbered(file, f"-step-{count}")))
                write(step.image, Path(step_files[-1]), size)
            if as_json:
                answer = given(
                    caption=painting.caption,
                    **named(str(file), "file"),
                    seed=painting.seed,
                    sample=painting.sample,
                    score=painting.score,
                    codes=painting.codes.tolist(),
                    steps=[readable_name(name) for name in step_files] or None,
                )
                say(json_line(answer))
            else:
                say((str(file), sys.stdout))
    if failed:
        raise typer.Exit(1)


def texts(captions: list[str]) -> Iterator[str]:
    """The captions, those of stdin as they arrive."""
    for caption in captions:
        if caption == "-":
            yield from stdin_lines()
        else:
            yield caption


def say(line: Line) -> None:
    """Print a line where it belongs, at once."""
    text, stream = line
    print(text, file=stream, flush=True)


def check_ending(output: Path) -> None:
    """Raise a UserError unless a picture can be written to ``output``."""
    from PIL import Image

    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if output.suffix.lower() not in known:
        raise UserError(f"{output}: no ending of a picture; write to a .png, .jpg or .webp file")
    if not os.path.isdir(output.parent):
        raise UserError(f"{output.parent}: no such folder; make it first")


def numbered(file: Path, mark: str) -> Path:
    """``out.png`` and ``-1`` to ``out-1.png``."""
    return file.with_name(f"{file.stem}{mark}{file.suffix}")


def write(image: Image, file: Path, size: int | None) -> None:
    """Write a picture, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    from PIL.Image import Resampling

    if size is not None:
        image = image.resize((size, size), Resampling.BICUBIC)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}.", suffix=file.suffix)
        os.close(handle)
        image.save(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from None
