"""The captions of a study: CSV as spreadsheets write it, or JSON, and the pictures that they name."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from diptych.eval.errors import UserError
from diptych.eval.ids import read_id
from diptych.eval.picture_folders import ENDINGS
from diptych.eval.text_files import read_json, read_text, whole_characters

SEPARATORS = ",;\t|"
TABLES = (".csv", ".tsv", ".tab", ".txt")
LONGEST = 1000  # letters of a caption
_JSON = '{"image": "caption"} or [{"image_id": ..., "caption": ...}]'


def read_captions(path: Path, encoding: str | None = None) -> dict[str, str]:
    """Captions by picture (file name without suffix) from a table with columns image and caption, or JSON.

    A table is CSV as Python's csv module reads it: quoted cells may hold line breaks and separators, which are one of
    SEPARATORS. encoding: of a table; without it UTF-8, or UTF-16 with a byte order mark. Captions become one line. Raises
    UserError that names the file and the place.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if (suffixes[-2] if suffixes[-1:] == [".gz"] and suffixes[1:] else path.suffix.lower()) in TABLES:
        rows = _read_table(path, encoding)
    else:
        rows = _read_list(path)
    captions: dict[str, str] = {}
    seen: dict[str, str] = {}
    broken = 0
    for where, image, caption in rows:
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{path}: {where} has no image (or image_id) and caption")
        try:
            name = image if isinstance(image, str) and image.strip() else read_id(image)
        except ValueError as error:
            raise UserError(
                f"{path}: {where} has no image (or image_id) and caption: the image is {image!r:.60}, {error}"
            ) from None
        key = picture_key(whole_characters(name))
        same = _same(key)
        if same in seen:
            raise UserError(
                f"{path}: {key} has two captions ({seen[same]} and {where}); keep the one that the pictures were made from"
            )
        text = whole_characters(caption)
        broken += text is not caption
        if len(text) > LONGEST:
            raise UserError(f"{path}: the caption of {key} is longer than {LONGEST} letters")
        seen[same] = where
        captions[key] = " ".join(text.split())
    if not captions:
        raise UserError(f"{path}: holds no captions")
    if broken:
        print(f"{path}: halves of characters are replaced in {broken} captions", file=sys.stderr)
    return captions


def picture_key(name: str) -> str:
    """The name of a picture without its folders and, if it is one of a picture, its suffix."""
    file = PureWindowsPath(name.strip())  # takes / and \
    return file.stem if file.suffix.lower() in ENDINGS else name.strip()


def match_pictures(
    captions: Mapping[str, str], pictures: Mapping[str, Path], folder: Path
) -> dict[str, Path]:
    """The pictures of a folder by the keys of their captions, for those that have one.

    A picture has the name of its key, or is the same number by the rule of ids: 139 is 000000000139.png. Raises UserError
    where two pictures are.
    """
    same: dict[str, list[Path]] = {}
    for name, path in pictures.items():
        same.setdefault(_same(name), []).append(path)
    matched = {}
    for key in captions:
        found = [pictures[key]] if key in pictures else same.get(_same(key), [])
        if len(found) > 1:
            raise UserError(
                f"{folder}: {found[0].name} and {found[1].name} are both picture {key}; remove one"
            )
        if found:
            matched[key] = found[0]
    return matched


def _same(key: str) -> str:
    try:
        return read_id(key)
    except ValueError:
        return key


def _read_table(path: Path, encoding: str | None) -> list[tuple[str, Any, Any]]:
    try:
        text = read_text(path, encoding)
    except UserError as error:
        mend = " or name its encoding with --encoding, such as cp1252 (Windows) or latin-1" * (
            encoding is None
        )
        raise UserError(f"{error}{mend}" if "save it as UTF-8" in str(error) else str(error)) from None
    text = text.removeprefix("\ufeff")
    separators = SEPARATORS
    if text[:4].lower() == "sep=" and text[5:6] in ("\r", "\n"):  # Excel's own first line
        separators, text = text[4], text[5:].lstrip("\r\n")
    rows: list[tuple[str, Any, Any]] = []
    heads = [(separator, _head(text, separator)) for separator in separators]
    for separator, head in heads:
        image = next((head.index(name) for name in ("image", "image_id") if name in head), None)
        if image is None or "caption" not in head:
            continue
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            for cells in reader:
                where = f"line {reader.line_num}"
                if reader.line_num == 1 or not any(cell.strip() for cell in cells):
                    continue
                if len(cells) > len(head) and any(cells[len(head) :]):
                    raise UserError(
                        f"{path}: {where} has {len(cells)} cells in {len(head)} columns; put a caption with {separator!r} "
                        "into quotation marks"
                    )
                cells += [""] * len(head)
                rows.append((where, cells[image], cells[head.index("caption")]))
        except csv.Error as error:
            raise UserError(f"{path}: no readable captions (line {reader.line_num}: {error})") from None
        return rows
    first = text.splitlines()[0][:60] if text.strip() else ""
    raise UserError(
        f"{path}: no columns image and caption in its first line {first!r}, separated by a comma, a semicolon, a tab or |"
    )


def _head(text: str, separator: str) -> list[str]:
    """The names of the columns, which are the table's first line."""
    try:
        line = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:
        return []
    return [cell.strip().casefold() for cell in line]


def _read_list(path: Path) -> list[tuple[str, Any, Any]]:
    content = read_json(path, _JSON)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    if isinstance(content, dict):
        return [(f"entry {number + 1}", *item) for number, item in enumerate(content.items())]
    rows: list[tuple[str, Any, Any]] = []
    for number, row in enumerate(content if isinstance(content, list) else [None]):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: entry {number + 1} has no image (or image_id) and caption; expected {_JSON}, not "
                f"{json.dumps(row)[:60]}"
            )
        rows.append((f"entry {number + 1}", row.get("image", row.get("image_id")), row.get("caption")))
    return rows
