"""Captions in COCO's JSON formats, by picture id."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from diptych.eval.entries import entry_id, short
from diptych.eval.errors import UserError
from diptych.eval.ids import LONGEST, read_id
from diptych.eval.text_files import read_json, whole_characters

FORMS = (
    'a COCO result ([{"image_id": 1, "caption": "..."}, ...]), COCO annotations ({"images": [...], "annotations": '
    '[{"image_id": 1, "caption": "..."}, ...]}) or {"1": "..." or ["...", ...]}'
)


@dataclass(frozen=True)
class CaptionFile:
    """captions: by picture id, in file order. ids: picture id by file name, where the file names pictures."""

    captions: dict[str, list[str]]
    ids: dict[str, str]


def read_captions(path: Path | str) -> CaptionFile:
    """Read COCO's annotations or results, or a plain mapping of ids to one caption or several.

    Ids become text by the rule of `diptych.eval.ids`. Halves of characters in captions become U+FFFD; how many is told on
    stderr. Raises UserError where the file is missing, is something else, or holds no caption.
    """
    content = read_json(path, FORMS)
    ids: dict[str, str] = {}
    rows: list[tuple[Any, Any]]
    if isinstance(content, dict) and "annotations" not in content:
        if isinstance(content.get("images"), list):
            raise UserError(f"{path}: {_images_alone(content['images'])}; expected {FORMS}")
        rows = [
            (key, caption)
            for key, several in content.items()
            for caption in (several if isinstance(several, list) else [several])
        ]
    else:
        listed = content["annotations"] if isinstance(content, dict) else content
        if not isinstance(listed, list):
            what = "annotations are no list" if isinstance(content, dict) else "neither an object nor a list"
            raise UserError(f"{path}: {what}; expected {FORMS}")
        for number, row in enumerate(listed):
            if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
                raise UserError(
                    f"{path}: entry {number} has no image_id and caption{_instead(row)}; expected {FORMS}"
                )
        rows = [(row["image_id"], row["caption"]) for row in listed]
        images = content.get("images", []) if isinstance(content, dict) else []
        ids = {
            str(image["file_name"]): entry_id(image["id"], path, f"entry {number} of images")
            for number, image in enumerate(images if isinstance(images, list) else [])
            if isinstance(image, dict) and {"file_name", "id"} <= image.keys()
        }
    captions: dict[str, list[str]] = {}
    broken = 0
    for number, (key, caption) in enumerate(rows):
        image_id = entry_id(key, path, f"entry {number}")
        if not isinstance(caption, str):
            raise UserError(f"{path}: the caption of picture {image_id} is {short(caption)}, not a text")
        text = whole_characters(caption)
        broken += text is not caption
        captions.setdefault(image_id, []).append(text)
    if not captions:
        raise UserError(f"{path}: no captions in it; expected {FORMS}")
    if broken:
        print(f"{path}: halves of characters are replaced in {broken} captions", file=sys.stderr)
    return CaptionFile(captions, ids)


def _images_alone(images: list[Any]) -> str:
    if images and isinstance(images[0], dict) and "sentences" in images[0]:
        return "Karpathy's form (as dataset_coco.json), which the pipeline's dataset stage reads"
    return "images without captions"


def _instead(row: Any) -> str:
    """What an entry is, where its form is known."""
    if not isinstance(row, dict):
        return f" but is {short(row)}"
    if {"image", "caption"} <= row.keys():
        return " but image and caption, as BLIP's coco_karpathy_*.json"
    if "bbox" in row:
        return " but a box, as COCO's instances"
    return ""


def read_predictions(path: Path | str) -> dict[str, str]:
    """One caption per picture. Raises UserError as read_captions does, and where a picture has several."""
    captions = read_captions(path).captions
    several = [image_id for image_id, texts in captions.items() if len(texts) > 1]
    if several:
        raise UserError(
            f"{path}: {len(several)} pictures have more than one caption (first: {several[0]}); predictions are one each"
        )
    return {image_id: texts[0] for image_id, texts in captions.items()}


def ids_of_files(names: Sequence[str], file: CaptionFile) -> list[str]:
    """The id of each picture file, "" where the caption file has none for it.

    names: paths below the folder of pictures. A picture is the one among the file's "images", or the id, whose path fits
    its own best from the end, with or without the ending; else the number at the end of its name is its id
    (000000000139.jpg and COCO_val2014_000000000139.jpg are picture 139). Separators, case, composed accents and %20 may
    differ. Where another picture's folders fit an entry better, the entry is not this picture.

    Raises UserError that names both where two entries with different captions fit equally.
    """
    listed: dict[str, list[_Entry]] = {}
    for name, image_id in file.ids.items():
        entry = _Entry(name, _parts(name), image_id, True)
        for key in {entry.parts[-1], PurePosixPath(entry.parts[-1]).stem}:
            listed.setdefault(key, []).append(entry)
    for image_id in file.captions:
        entry = _Entry(image_id, _parts(image_id), image_id, False)
        listed.setdefault(entry.parts[-1], []).append(entry)
    found = [_id_of(name, listed, file) for name in names]
    most: dict[str, int] = {}
    for image_id, folders in found:
        most[image_id] = max(most.get(image_id, 0), folders)
    return [
        "" if image_id not in file.captions or (folders < most[image_id] and "/" in name) else image_id
        for name, (image_id, folders) in zip(names, found, strict=True)
    ]


@dataclass(frozen=True)
class _Entry:
    """A name that the caption file has for a picture: a file's name, or an id."""

    name: str
    parts: tuple[str, ...]
    image_id: str
    is_file: bool

    def fit(self, name: str, parts: tuple[str, ...]) -> tuple[int, ...]:
        """How well it fits a picture's path: larger is better, whatever counts more comes first."""
        folders = _common(self.parts[:-1], parts[:-1])
        return (
            self.name == name,
            folders == min(len(self.parts), len(parts)) - 1,  # no folder says otherwise
            folders,
            PurePosixPath(self.name).name == PurePosixPath(name).name,
            self.parts[-1] == parts[-1],
            len(self.parts) == len(parts),
        )


def _id_of(name: str, listed: Mapping[str, Sequence[_Entry]], file: CaptionFile) -> tuple[str, int]:
    """The id of a picture, and how many folders say so."""
    parts = _parts(name)
    stem = PurePosixPath(parts[-1]).stem
    entries = {*listed.get(parts[-1], ()), *listed.get(stem, ())}
    # the names of files say which picture is meant; an id may be a number that has nothing to do with them
    entries = {entry for entry in entries if entry.is_file} or entries
    if entries:
        top = max(entry.fit(name, parts) for entry in entries)
        best = sorted(
            (entry for entry in entries if entry.fit(name, parts) == top), key=lambda entry: entry.name
        )
        if len({tuple(file.captions.get(entry.image_id, ())) for entry in best}) > 1:
            raise UserError(
                f"{name}: {best[0].name} and {best[1].name} of the caption file could both be this picture, and have "
                "different captions; give pictures and captions the same paths"
            )
        return best[0].image_id, top[2]
    number = re.search(r"([0-9]+)$", stem)
    return (read_id(number[1]) if number and len(number[1]) <= LONGEST else stem), 0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many folders agree, from the end."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _parts(name: str) -> tuple[str, ...]:
    """The folders and the name of a path, without what may be spelled otherwise; a number as the rule of ids writes it."""
    text = unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))).casefold()
    parts = [part for part in text.split("/") if part not in ("", ".")] or [text]
    stem, ending = PurePosixPath(parts[-1]).stem, PurePosixPath(parts[-1]).suffix
    if re.fullmatch("[0-9]+", stem) and len(stem) <= LONGEST:
        parts[-1] = read_id(stem) + ending
    return tuple(parts)
