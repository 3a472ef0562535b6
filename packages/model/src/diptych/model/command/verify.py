"""``diptych verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from diptych.features.text_files import whole_characters
from diptych.model.command.options import Device, Json, Model, Precision, load_model
from diptych.model.command.pictures import as_their_bytes, json_line, readable_name


def verify(
    left: Annotated[str, typer.Argument(help="The left picture's file.", show_default=False)],
    right: Annotated[str, typer.Argument(help="The right one's.", show_default=False)],
    statement: Annotated[str, typer.Argument(help="What is said of both, in quotes.", show_default=False)],
    model: Model = None,
    device: Device = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Say whether a statement is true of two pictures: one line, true or false. The status is 0 either way."""
    as_their_bytes()
    d = load_model(model, device, precision)
    statement = whole_characters(statement)
    verdict = d.verify((left, right), statement)[0]
    if as_json:
        content = {
            "left": readable_name(left),
            "right": readable_name(right),
            "statement": statement,
            "true": verdict.true,
            "probability": round(verdict.probability, 6),
        }
        print(json_line(content)[0])
    else:
        print(verdict)
