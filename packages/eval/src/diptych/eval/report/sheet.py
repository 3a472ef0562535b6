"""A contact sheet: many pictures in one to look at."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diptych.eval.errors import UserError
from diptych.eval.report.labels import VIEWS

_INK = "#23252b"


def contact_sheet(
    rows: Sequence[Mapping[str, Any]], columns: int, tile: int = 128, views: Sequence[str] = VIEWS
) -> Image.Image:
    """One picture of many: the `views` side by side, `tile` pixels each, the prompt below where rows have one.

    `rows` are as `ReportInputs.pictures`. Raises UserError when there are none.
    """
    if not rows:
        raise UserError("a contact sheet needs at least one picture; run the stage that generates them")
    margin, gap = 10, 4
    lines = 3 if any("prompt" in row for row in rows) else 0
    font = ImageFont.load_default(size=13)
    cell_width = len(views) * tile + (len(views) - 1) * gap + 2 * margin
    cell_height = tile + lines * 17 + 2 * margin
    columns = min(columns, len(rows))
    sheet = Image.new("RGB", (columns * cell_width, math.ceil(len(rows) / columns) * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        left = number % columns * cell_width + margin
        top = number // columns * cell_height + margin
        for place, view in enumerate(views):
            picture = (
                Image.open(io.BytesIO(row[view]))
                .convert("RGB")
                .resize((tile, tile), Image.Resampling.LANCZOS)
            )
            sheet.paste(picture, (left + place * (tile + gap), top))
        if "prompt" in row:
            width = len(views) * tile // 7
            text = textwrap.wrap(
                f"{number + 1}. {row['prompt']}", width=width, max_lines=lines, placeholder=" …"
            )
            pen.text((left, top + tile + 4), "\n".join(text), fill=_INK, font=font)
    return sheet
