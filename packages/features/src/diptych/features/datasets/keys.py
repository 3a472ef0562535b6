"""Ids of images as manifests write them."""

from __future__ import annotations

import re

from diptych.features.ids import LONGEST, read_id

# COCO's own names of pictures, without their ending; the number is the id
COCO_NAME = re.compile(r"COCO_[a-z]+20\d\d_(\d{12})")
_NUMBER = re.compile(r"-?[0-9]+")
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}")


def image_key(value: object) -> str:
    """The id as manifests write it: numbers in COCO's twelve digits, as in its file names.

    Raises ValueError that says what is wrong with it, also for text that could not name a shard's member.
    """
    text = read_id(value)
    if _NUMBER.fullmatch(text):
        text = f"{int(text):012d}"
    if not _NAME.fullmatch(text):
        raise ValueError(f"ids have letters, digits, _ and -, {LONGEST} at most")
    return text


def in_order(key: str) -> tuple[int, int, str]:
    """Sorts ids: numbers by their values, then text."""
    return (0, int(key), "") if _NUMBER.fullmatch(key) else (1, 0, key)
