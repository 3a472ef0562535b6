"""The annotation files: what each says, every value checked where it is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diptych.features.datasets.bad_rows import BadRow, BadRows, row_id
from diptych.features.datasets.coco.boxes import Box, is_crowd, read_corners, read_label, read_size
from diptych.features.datasets.coco.config import CocoConfig, CocoSource, check_split
from diptych.features.datasets.keys import image_key, in_order
from diptych.features.errors import UserError
from diptych.features.text_files import json_kind, read_json, whole_characters


@dataclass
class ListedImage:
    """An image as annotations list it.

    image_id: as in manifests. path: folder / name, until the file is found under another spelling. origin: the annotation
    file that lists it. boxes: its objects, None where unknown; size: width and height by the file of its boxes, which is
    `boxes_origin`.
    """

    image_id: str
    split: str
    folder: Path
    name: str
    origin: str
    captions: list[str]
    boxes: list[Box] | None = None
    size: tuple[int, int] | None = None
    boxes_origin: Path | None = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.folder / self.name


@dataclass
class Instances:
    """What an instances file says: the images it lists with their sizes, and the objects of those that have any."""

    path: Path
    sizes: dict[str, tuple[int, int] | None]
    boxes: dict[str, list[Box]]


@dataclass
class LeftOut:
    """What is left out and told: `counts` of what nothing can be learned from, and rows that cannot be used."""

    counts: Counter[str] = field(default_factory=Counter)
    rows: list[BadRows] = field(default_factory=list)

    def bad_rows(self, path: Path, what: str) -> BadRows:
        self.rows.append(BadRows(path, what))
        return self.rows[-1]


def read_source(source: CocoSource, seed: int, left_out: LeftOut) -> list[ListedImage]:
    """The images of an official captions file, with the boxes of its instances file.

    Raises UserError for files that are something else, or that do not fit together.
    """
    content = read_json(source.captions)
    if not source.images.is_dir():
        raise UserError(f"{source.images}: no such image folder; set dataset.coco.sources[].images")
    expected = "COCO captions", "expected images and annotations with captions"
    images, annotations = (
        _rows_of(content, key, source.captions, *expected) for key in ("images", "annotations")
    )
    names, dropped = _listed(images, source.captions, left_out)
    captions, spoiled = _captions(annotations, dropped, source.captions, left_out)
    if lost := {key for key, _ in names} & spoiled - captions.keys():
        left_out.counts["images without a caption that can be used"] += len(lost)
        names = [(key, name) for key, name in names if key not in lost]
    files = {key for key, _ in names}
    if strangers := sorted(captions.keys() - files, key=in_order):
        raise UserError(
            f"{source.captions}: a caption names image {_as_written(strangers[0])}, which the file does not list, the "
            f"first of {len(strangers)} such images; give the captions file of one split and year, as it was downloaded"
        )
    boxes = [read_instances(source.instances, files, left_out)] if source.instances else []
    splits = dict.fromkeys(files, source.split)
    if source.split == "val/test":
        ordered = sorted(files, key=in_order)
        drawn = np.random.default_rng(seed).permutation(len(ordered))
        splits = {ordered[i]: ("val", "test")[n % 2] for n, i in enumerate(drawn)}
    origin = str(source.captions)
    listed = [
        ListedImage(key, splits[key], source.images, name, origin, captions.get(key, []))
        for key, name in names
    ]
    return _with_boxes(listed, boxes)


def read_karpathy(config: CocoConfig, left_out: LeftOut) -> list[ListedImage]:
    """The images of Karpathy's file, with the boxes of the instances files. Errors: see read_source."""
    assert config.karpathy is not None and config.images is not None
    path = config.karpathy
    if not config.images.is_dir():
        raise UserError(f"{config.images}: no such image folder; set dataset.coco.images")
    content = read_json(path)
    expected = "Karpathy's dataset_coco.json", "expected images with a split and sentences"
    rows = _rows_of(content, "images", path, *expected)
    if rows and all(isinstance(row, dict) and "sentences" not in row for row in rows):
        raise UserError(f"{path}: not {expected[0]} but {json_kind(content)}; {_mend(content, expected[1])}")
    bad, bad_sentences = left_out.bad_rows(path, "images"), left_out.bad_rows(path, "sentences")
    images, cocoids = [], set()
    for number, row in enumerate(rows):
        bad.total += 1
        try:
            key, name = _image(row, ("cocoid", "imgid"), ("filename",))
            folder = row.get("filepath") or ""
            if not isinstance(folder, str):
                raise BadRow("whose filepath is not text", folder)
            split = row.get("split")
            try:
                check_split(split)
            except UserError as error:
                raise BadRow("whose split is no name of letters, digits and _", split) from error
            if not isinstance(row.get("sentences"), list):
                raise BadRow("whose sentences are no list", row.get("sentences"))
        except BadRow as problem:
            bad.add(_karpathy_id(row, number), problem)
            continue
        captions: list[str] = []
        for sentence in row["sentences"]:
            bad_sentences.total += 1
            try:
                text = sentence.get("raw") if isinstance(sentence, dict) else sentence
                captions += _tidy(text, left_out.counts)
            except BadRow as problem:
                bad_sentences.add(_karpathy_id(row, number), problem)
        if row.get("cocoid") is not None:
            cocoids.add(key)
        split = "train" if split == "restval" and config.restval else split
        name = f"{folder}/{name}" if folder else name
        images.append(ListedImage(key, split, config.images, name, str(path), captions))
    bad.check()
    bad_sentences.check()
    boxes = [read_instances(file, cocoids, left_out) for file in config.instances]
    _with_boxes([image for image in images if image.image_id in cocoids], boxes)
    return images


def read_instances(path: Path, image_ids: Collection[str], left_out: LeftOut) -> Instances:
    """Raises UserError for a file that is something else, or has boxes of none of `image_ids`."""
    # outlines take nine tenths of an instances file, and nobody here reads them
    content = read_json(path, _without_outline)
    expected = "COCO instances", "expected categories and annotations with boxes"
    categories = {}
    for row in _rows_of(content, "categories", path, *expected):
        try:
            categories[_key(row, ("id",), "id")] = row
        except BadRow as problem:
            raise UserError(f"{path}: a category cannot be used: one {problem.fault}; mend it") from problem
    sizes: dict[str, tuple[int, int] | None] = {}
    bad_images = left_out.bad_rows(path, "images")
    for number, row in enumerate(_rows_of(content, "images", path, *expected) if "images" in content else []):
        bad_images.total += 1
        try:
            key = _key(row, ("id",), "id")
            sizes[key] = None  # listed, whatever its size
            sizes[key] = read_size(row)
        except BadRow as problem:
            bad_images.add(row_id(row, number), problem)
    bad_images.check()
    boxes: dict[str, list[Box]] = defaultdict(list)
    bad = left_out.bad_rows(path, "annotations")
    for number, row in enumerate(_rows_of(content, "annotations", path, *expected)):
        bad.total += 1
        try:
            key = _key(row, ("image_id",), "image_id")
            sizes.setdefault(key, None)
            if is_crowd(row):
                left_out.counts["crowd regions"] += 1
                continue
            corners = read_corners(row.get("bbox"))
            if not (corners[2] > corners[0] and corners[3] > corners[1]):
                left_out.counts["boxes without area"] += 1
                continue
            category = categories.get(_key(row, ("category_id",), "category_id"))
            if category is None:
                raise BadRow("whose category the file does not list", row.get("category_id"))
            boxes[key].append(Box(row_id(row, number), corners, read_label(category)))
        except BadRow as problem:
            bad.add(row_id(row, number), problem)
    if (
        bad.total
        and not boxes
        and not any("bbox" in row for row in content["annotations"] if isinstance(row, dict))
    ):
        raise UserError(f"{path}: not {expected[0]} but {json_kind(content)}; {_mend(content, expected[1])}")
    bad.check()
    if sizes.keys().isdisjoint(image_ids):
        raise UserError(
            f"{path}: none of its {len(sizes)} images is among those with captions; give the instances file of the "
            "same split and year, or none"
        )
    return Instances(path, sizes, boxes)


def _listed(rows: Sequence[Any], path: Path, left_out: LeftOut) -> tuple[list[tuple[str, str]], set[str]]:
    """Id and file name of each image, and the ids of those that cannot be used."""
    bad, dropped = left_out.bad_rows(path, "images"), set()
    names: list[tuple[str, str]] = []
    for number, row in enumerate(rows):
        bad.total += 1
        try:
            names.append(_image(row, ("id",), ("file_name",)))
        except BadRow as problem:
            bad.add(row_id(row, number), problem)
            try:
                dropped.add(_key(row, ("id",), "id"))
            except BadRow:
                continue
    bad.check()
    return names, dropped


def _captions(
    rows: Sequence[Any], dropped: Collection[str], path: Path, left_out: LeftOut
) -> tuple[dict[str, list[str]], set[str]]:
    """Captions by image, without those of images that are `dropped`, and the images of those that cannot be used."""
    if rows and not any(isinstance(row, dict) and "caption" in row for row in rows):
        kind = json_kind({"annotations": list(rows[:1])})
        raise UserError(f"{path}: not COCO captions but {kind}; expected annotations with captions")
    bad, spoiled = left_out.bad_rows(path, "annotations"), set()
    captions: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(rows):
        bad.total += 1
        key = ""
        try:
            key = _key(row, ("image_id",), "image_id")
            if key not in dropped:
                text = _tidy(row.get("caption"), left_out.counts)
                captions[key] += text
        except BadRow as problem:
            bad.add(row_id(row, number), problem)
            spoiled.add(key)
    bad.check()
    return captions, spoiled


def _image(row: Any, ids: Sequence[str], names: Sequence[str]) -> tuple[str, str]:
    """Id and file name. Raises BadRow."""
    key = _key(row, ids, " or ".join(ids))
    name = next((row[name] for name in names if name in row), None)
    if not isinstance(name, str) or not name.strip():
        raise BadRow(f"whose {names[0]} is not text", name)
    if "\0" in name or name != whole_characters(name):
        raise BadRow(f"whose {names[0]} holds what no file's name can", name)
    return key, name


def _key(row: Any, names: Sequence[str], called: str) -> str:
    """The first id that the row has of these names, as manifests write it. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow("that are no objects", row)
    value = next((row[name] for name in names if row.get(name) is not None), None)
    try:
        return image_key(value)
    except ValueError as error:
        raise BadRow(f"whose {called} cannot be used ({error})", value) from None


def _karpathy_id(row: Any, number: int) -> object:
    if isinstance(row, dict):
        row = {"id": next((row[name] for name in ("cocoid", "imgid") if row.get(name) is not None), None)}
    return row_id(row, number)


def _with_boxes(images: list[ListedImage], files: Sequence[Instances]) -> list[ListedImage]:
    """The images with objects and sizes; unknown where no file lists them."""
    for image in images:
        for file in files:
            if image.image_id in file.sizes:
                image.boxes, image.size = file.boxes.get(image.image_id, []), file.sizes[image.image_id]
                image.boxes_origin = file.path
                break
    return images


def _rows_of(content: Any, key: str, path: Path, name: str, expected: str) -> list[Any]:
    """The list under a key of a file. Raises UserError that says what the file is instead."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: not {name} but {json_kind(content)}; {_mend(content, expected)}")
    if key not in content:
        kind = json_kind(content)
        known = kind != name.replace("COCO", "COCO's")
        instead = f" but {kind}; {_mend(content, expected)}" if known else f"; {expected}"
        raise UserError(f"{path}: not {name} (no {key!r}){instead}")
    if not isinstance(content[key], list):
        raise UserError(f"{path}: not {name} ({key!r} is no list); {expected}")
    return content[key]


def _mend(content: Any, expected: str) -> str:
    kind = json_kind(content)
    if kind == "COCO's captions":
        return f"{expected}. Files like this one are dataset.coco.sources[].captions, with karpathy: null"
    if kind == "COCO's instances":
        return f"{expected}. Files like this one are `instances`"
    if kind.startswith("Karpathy"):
        return f"{expected}. A file like this one is dataset.coco.karpathy"
    return expected


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _as_written(key: str) -> str:
    return str(int(key)) if key.isdecimal() else key


def _tidy(caption: Any, counts: Counter[str]) -> list[str]:
    """The caption in one line, ending in a full stop, as training expects it; none if it has no word.

    Raises BadRow where it is not text.
    """
    if not isinstance(caption, str):
        raise BadRow("whose caption is not text", caption)
    whole = whole_characters(caption)
    if whole is not caption:
        counts["halves of characters (replaced, in that many captions)"] += 1
    caption = " ".join(whole.split())
    if not any(character.isalnum() for character in caption):
        counts["empty captions"] += 1
        return []
    return [caption if caption.endswith((".", "!", "?")) else caption + " ."]
