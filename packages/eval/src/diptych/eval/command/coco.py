"""Captions in COCO's JSON formats, by picture id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.eval.errors import UserError

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

    Ids become strings. Raises UserError where the file is missing, is something else, or holds no caption.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected {FORMS}") from None
    ids: dict[str, str] = {}
    rows: list[tuple[Any, Any]]
    if isinstance(content, dict) and "annotations" not in content:
        rows = [
            (key, caption)
            for key, several in content.items()
            for caption in (several if isinstance(several, list) else [several])
        ]
    else:
        listed = content["annotations"] if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise UserError(f"{path}: annotations are no list; expected {FORMS}")
        for number, row in enumerate(listed):
            if not isinstance(row, dict) or not {"image_id", "caption"} <= row.keys():
                raise UserError(f"{path}: entry {number} has no image_id and caption; expected {FORMS}")
        rows = [(row["image_id"], row["caption"]) for row in listed]
        images = content.get("images", []) if isinstance(content, dict) else []
        ids = {
            str(image["file_name"]): str(image["id"])
            for image in (images if isinstance(images, list) else [])
            if isinstance(image, dict) and {"file_name", "id"} <= image.keys()
        }
    captions: dict[str, list[str]] = {}
    for key, caption in rows:
        if not isinstance(caption, str):
            raise UserError(f"{path}: the caption of picture {key} is {caption!r}, not a text")
        captions.setdefault(str(key), []).append(caption)
    if not captions:
        raise UserError(f"{path}: no captions in it; expected {FORMS}")
    return CaptionFile(captions, ids)


def read_predictions(path: Path | str) -> dict[str, str]:
    """One caption per picture. Raises UserError as read_captions does, and where a picture has several."""
    captions = read_captions(path).captions
    several = [image_id for image_id, texts in captions.items() if len(texts) > 1]
    if several:
        raise UserError(
            f"{path}: {len(several)} pictures have more than one caption (first: {several[0]}); predictions are one each"
        )
    return {image_id: texts[0] for image_id, texts in captions.items()}


def captions_of_files(names: Sequence[str], file: CaptionFile) -> list[list[str]]:
    """The captions of each picture file, [] where there are none.

    A name is found among the file's "images", else its stem is the id, or the number at its end is
    (000000000139.jpg and COCO_val2014_000000000139.jpg are picture 139).
    """
    by_name = {PurePosixPath(name).name: image_id for name, image_id in file.ids.items()}
    by_stem = {PurePosixPath(name).stem: image_id for name, image_id in file.ids.items()}
    return [
        file.captions.get(_id_of(PurePosixPath(name), by_name, by_stem, file.captions), []) for name in names
    ]


def _id_of(
    path: PurePosixPath,
    by_name: Mapping[str, str],
    by_stem: Mapping[str, str],
    captions: Mapping[str, list[str]],
) -> str:
    known = by_name.get(path.name) or by_stem.get(path.stem)
    if known is not None:
        return known
    if path.stem in captions:
        return path.stem
    number = re.search(r"(\d+)$", path.stem)
    return str(int(number[1])) if number else path.stem
