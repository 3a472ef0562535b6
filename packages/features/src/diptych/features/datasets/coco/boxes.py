"""Objects of instances files: what is checked where they are read, and against the picture that they lie in."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

from diptych.features.datasets.bad_rows import BadRow
from diptych.features.text_files import whole_characters

LONGEST_SIDE = 1_000_000  # pixels; no picture that is read has such a side
MIN_INSIDE = 0.5  # of a box's area, for it to be cut at the border of its picture
_NOTED = 1.0  # pixels beyond the border; less is rounding, which COCO's own boxes have
_CROWD = {0: False, 1: True, "0": False, "1": True, None: False}

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """An object as the file has it. annotation: its id. corners: x0 y0 x1 y1, in pixels."""

    annotation: object
    corners: Corners
    label: str


def read_corners(bbox: Any) -> Corners:
    """x0 y0 x1 y1 of COCO's x, y, width, height. Raises BadRow unless these are four numbers of a possible size."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise BadRow("whose bbox is not four numbers", bbox)
    if not all(abs(value) <= LONGEST_SIDE for value in bbox):  # false for what is not finite, too
        raise BadRow("whose bbox has an impossible size", bbox)
    x, y, width, height = bbox
    return x, y, x + width, y + height


def is_crowd(annotation: dict[str, Any]) -> bool:
    """COCO's iscrowd. Raises BadRow for another value than 0 and 1."""
    value = annotation.get("iscrowd")
    try:
        return _CROWD[value]
    except (KeyError, TypeError):
        raise BadRow("whose iscrowd is neither 0 nor 1", value) from None


def read_label(category: dict[str, Any]) -> str:
    """The name of a category in one line. Raises BadRow where it is no text, empty, or holds control characters."""
    name = category.get("name")
    if not isinstance(name, str):
        raise BadRow("whose category's name is not text", name)
    text = " ".join(whole_characters(name).split())
    if not text or any(unicodedata.category(letter) == "Cc" for letter in text):
        raise BadRow("whose category's name is empty or holds control characters", name)
    return text


def read_size(image: Any) -> tuple[int, int] | None:
    """Width and height that a file states of an image; None where it states none.

    Raises BadRow where they are no whole numbers of pixels.
    """
    sides = [image.get("width"), image.get("height")]
    if sides == [None, None]:
        return None
    values: list[int] = []
    for side in sides:
        if isinstance(side, str) and side.strip().isdecimal() and len(side) < 10:
            side = int(side)
        if not _is_number(side) or not 1 <= side <= LONGEST_SIDE or side != int(side):
            raise BadRow("whose width and height are no whole numbers of pixels", sides)
        values.append(int(side))
    return values[0], values[1]


def fit_box(corners: Corners, size: tuple[int, int], left_out: Counter[str]) -> Corners:
    """The box cut at the border of its picture of `size` (width, height); the same values where it lies inside.

    Raises BadRow where less than MIN_INSIDE of it lies in the picture.
    """
    x0, y0, x1, y1 = corners
    cut = (max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1]))
    inside = max(cut[2] - cut[0], 0) * max(cut[3] - cut[1], 0)
    if inside < MIN_INSIDE * (x1 - x0) * (y1 - y0) or inside <= 0:
        raise BadRow(
            "whose bbox lies outside of its picture",
            f"{x0:g} {y0:g} to {x1:g} {y1:g} in {size[0]} x {size[1]}",
        )
    if max(abs(a - b) for a, b in zip(cut, corners, strict=True)) > _NOTED:
        left_out["parts of boxes beyond the border of their picture"] += 1
    return cut


def turn_box(corners: Corners, stored: tuple[int, int], orientation: int) -> Corners:
    """A box of the stored picture as one of the upright picture.

    stored: width and height as the pixels are stored. orientation: EXIF's, 5 to 8, which stand the picture on its side.
    """
    x0, y0, x1, y1 = corners
    width, height = stored
    if orientation == 5:  # mirrored at the diagonal
        return y0, x0, y1, x1
    if orientation == 6:  # turned by 90 degrees, clockwise
        return height - y1, x0, height - y0, x1
    if orientation == 7:  # mirrored at the other diagonal
        return height - y1, width - x1, height - y0, width - x0
    return y0, width - x1, y1, width - x0  # 8: turned by 90 degrees, counterclockwise


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return not math.isnan(value)
    return isinstance(value, int) and not isinstance(value, bool)
