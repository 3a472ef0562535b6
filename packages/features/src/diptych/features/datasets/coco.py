"""COCO-format datasets: image folders with captions_*.json (and instances_*.json), or Karpathy's JSON.

COCO 2014 has 82,783 training and 40,504 validation images with captions. Karpathy's splits share the latter between
val (5,000), test (5,000) and restval (30,504); his train is the official one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diptych.features.errors import UserError
from diptych.features.file_facts import FileFacts
from diptych.features.images import image_size

_AHEAD = 256  # images that are being read while earlier ones are written down


@dataclass(frozen=True)
class CocoSource:
    """One pair of annotation files. `split` is the split of its images, or "val/test": half of them each,
    drawn with the seed. `instances` may be null; without it there are no objects."""

    split: str
    images: Path
    captions: Path
    instances: Path | None

    def __post_init__(self) -> None:
        if self.split != "val/test":
            _check_split(self.split)


@dataclass(frozen=True)
class CocoConfig:
    """Either `karpathy`, or where that is null `sources`, the official annotations.

    karpathy: dataset_coco.json; `images` is the folder that holds its file paths (train2014/, val2014/). It has no
    boxes: `instances` are COCO's files that do, empty for none. restval: whether its split "restval" counts as
    train (113,287 images, as many captioning papers train), or stays a split of its own that nothing is trained
    on (the papers train on 82,783, and paint what they sampled from all of val2014).
    limit: at most so many images a split, drawn with the seed; null for all.
    """

    sources: list[CocoSource]
    karpathy: Path | None
    images: Path | None
    instances: list[Path]
    restval: bool
    limit: int | None

    def __post_init__(self) -> None:
        if self.karpathy is None and not self.sources:
            raise UserError("give `karpathy` or `sources`")
        if self.karpathy is not None and self.images is None:
            raise UserError("`karpathy` needs `images`, the folder of train2014/ and val2014/")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1 or null, is {self.limit}")


@dataclass
class _Image:
    image_id: str
    split: str
    path: Path
    origin: str  # the annotation file that lists it
    captions: list[str]
    objects: list[dict[str, Any]] | None
    size: tuple[int, int] | None = None  # width and height by the file of its boxes


@dataclass
class _Boxes:
    """What an instances file says: the images it lists with their sizes, and the objects of those that have any."""

    sizes: dict[Hashable, tuple[int, int] | None]
    objects: dict[Hashable, list[dict[str, Any]]]


def read_coco(
    config: CocoConfig, seed: int, facts_file: Path | None = None, manifest_folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yield manifest rows, sorted by split and image_id.

    facts_file: keeps sha256 and size of every file that was read, so that a run after a kill, or with another
    `limit`, reads the others only; null keeps nothing. manifest_folder: where the manifest will be; images whose
    folder is given by a relative path get one relative to it (the dataset may move with its manifest), others an
    absolute one. Without it all are absolute.

    Objects are null for an image that no instances file lists, and empty for one that it lists without any; crowd
    regions and boxes without area are left out, the largest object comes first.

    Raises UserError for a missing folder or annotation file, a file that is not such JSON, annotations that do not
    fit together (an id that occurs twice, captions of images that are not listed, boxes of another split), images
    that are missing on disk, have no caption, or are not of the size that their boxes were drawn on. A damaged
    image is left to the stages that decode it.
    """
    left_out: Counter[str] = Counter()  # what nothing can be learned from, to be told
    if config.karpathy is not None:
        images = _read_karpathy(config, left_out)
    else:
        images = [image for source in config.sources for image in _read_source(source, seed, left_out)]
    _check_ids(images)
    if bare := [image for image in images if not image.captions]:
        raise UserError(
            f"{bare[0].origin}: {len(bare)} of {len(images)} images have no caption, the first is {bare[0].image_id}; "
            "add captions or remove these images from the file"
        )
    images.sort(key=lambda image: (image.split, image.image_id))
    if config.limit is not None:
        images = _limited(images, config.limit, seed)
    if left_out:
        print(
            "coco: left out", ", ".join(f"{n} {kind}" for kind, n in left_out.most_common()), file=sys.stderr
        )
    yield from _rows(images, _find(images), facts_file, manifest_folder)


def _read_source(source: CocoSource, seed: int, left_out: Counter[str]) -> list[_Image]:
    content = _read_json(source.captions)
    if not source.images.is_dir():
        raise UserError(f"{source.images}: no such image folder; set dataset.coco.sources[].images")
    try:
        listed = [(image["id"], source.images / image["file_name"]) for image in content["images"]]
        files = dict(listed)
        captions: dict[Hashable, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]] += _tidy(annotation["caption"], left_out)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{source.captions}: not COCO captions (no {error}); expected images and annotations"
        ) from error
    if strangers := sorted(captions.keys() - files.keys(), key=str):
        raise UserError(
            f"{source.captions}: a caption names image {strangers[0]}, which the file does not list, the first "
            f"of {len(strangers)} such images; give the captions file of one split and year, as it was downloaded"
        )
    boxes = _read_instances(source.instances, files.keys(), left_out) if source.instances else None
    splits: dict[Hashable, str] = dict.fromkeys(files, source.split)
    if source.split == "val/test":
        order = np.random.default_rng(seed).permutation(sorted(files))
        splits = {i.item(): ("val", "test")[n % 2] for n, i in enumerate(order)}
    return [
        _Image(
            image_id=_key(image_id),
            split=splits[image_id],
            path=path,
            origin=str(source.captions),
            captions=captions.get(image_id, []),
            **_objects(image_id, [boxes] if boxes else []),
        )
        for image_id, path in listed
    ]


def _read_karpathy(config: CocoConfig, left_out: Counter[str]) -> list[_Image]:
    assert config.karpathy is not None and config.images is not None
    if not config.images.is_dir():
        raise UserError(f"{config.images}: no such image folder; set dataset.coco.images")
    content = _read_json(config.karpathy)
    images = []
    try:
        ids = {image["cocoid"] for image in content["images"] if "cocoid" in image}
        boxes = [_read_instances(path, ids, left_out) for path in config.instances]
        for image in content["images"]:
            split = image["split"]
            _check_split(split)
            images.append(
                _Image(
                    image_id=_key(image["cocoid"] if "cocoid" in image else image["imgid"]),
                    split="train" if split == "restval" and config.restval else split,
                    path=config.images / image.get("filepath", "") / image["filename"],
                    origin=str(config.karpathy),
                    captions=[c for s in image["sentences"] for c in _tidy(s["raw"], left_out)],
                    **_objects(image.get("cocoid"), boxes),
                )
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config.karpathy}: not Karpathy's dataset_coco.json (no {error})") from error
    return images


def _read_instances(path: Path, image_ids: Iterable[Hashable], left_out: Counter[str]) -> _Boxes:
    """Raises UserError when the file has boxes of none of `image_ids`."""
    content = _read_json(path)
    objects: dict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        sizes = {image["id"]: _size(image) for image in content.get("images", [])}
        for annotation in content["annotations"]:
            sizes.setdefault(annotation["image_id"], None)
            x, y, width, height = annotation["bbox"]
            if annotation.get("iscrowd"):
                left_out["crowd regions"] += 1
            elif not (width > 0 and height > 0 and math.isfinite(x + y + width + height)):
                left_out["boxes without area"] += 1
            else:
                objects[annotation["image_id"]].append(
                    {
                        "bbox": [x, y, x + width, y + height],
                        "label": names[annotation["category_id"]],
                        "attributes": [],
                    }
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not COCO instances ({error!r}); expected categories and annotations"
        ) from error
    if sizes.keys().isdisjoint(image_ids):
        raise UserError(
            f"{path}: none of its {len(sizes)} images is among those with captions; give the instances file of the "
            "same split and year, or none"
        )
    # The largest object first: what a caption is about, as far as boxes can tell.
    for found in objects.values():
        found.sort(key=lambda o: -(o["bbox"][2] - o["bbox"][0]) * (o["bbox"][3] - o["bbox"][1]))
    return _Boxes(sizes, objects)


def _objects(image_id: Hashable, boxes: list[_Boxes]) -> dict[str, Any]:
    """`objects` and `size` of an image: unknown where no file lists it."""
    for file in boxes:
        if image_id in file.sizes:
            return {"objects": file.objects.get(image_id, []), "size": file.sizes[image_id]}
    return {"objects": None}


def _check_ids(images: list[_Image]) -> None:
    """Raise UserError for an id that two images have, before anything long begins."""
    first: dict[str, str] = {}
    twice: list[_Image] = []
    for image in images:
        if image.image_id in first:
            twice.append(image)
        first.setdefault(image.image_id, image.origin)
    if twice:
        where = dict.fromkeys([first[twice[0].image_id], twice[0].origin])
        raise UserError(
            f"{' and '.join(where)}: {len(twice)} image ids are listed more than once, the first is "
            f"{twice[0].image_id}; an image has one id and one split: remove the repetitions, or what is given twice"
        )


def _check_split(split: object) -> None:
    """Splits name shards: only what can be part of a file name."""
    if not isinstance(split, str) or not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise UserError(f"split {split!r}: use letters, digits and _, or val/test for a split to be shared")


def _limited(images: list[_Image], limit: int, seed: int) -> list[_Image]:
    kept: list[_Image] = []
    for split in sorted({image.split for image in images}):
        of_split = [image for image in images if image.split == split]
        chosen = np.random.default_rng(seed).permutation(len(of_split))[:limit]
        kept += [of_split[i] for i in sorted(chosen)]
    return kept


def _find(images: list[_Image]) -> list[os.stat_result]:
    """What the file system says of each image. Raises one UserError for all that are missing."""
    found, missing = [], []
    for image in images:
        try:
            status = image.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            missing.append(image)
        else:
            found.append(status)
    if missing:
        mend = "complete the image folder or remove these images from the annotations"
        if len(missing) == len(images):
            mend = "give the folder that the annotations are of: the same split and year"
        raise UserError(
            f"{missing[0].origin}: {len(missing)} of {len(images)} images are missing on disk, the first is "
            f"{missing[0].image_id}, {missing[0].path}; {mend}"
        )
    return found


def _rows(
    images: list[_Image], found: list[os.stat_result], facts_file: Path | None, manifest_folder: Path | None
) -> Iterator[dict[str, Any]]:
    wrong: list[tuple[_Image, dict[str, Any]]] = []
    with FileFacts(facts_file) as known:
        paths = {
            image.path: None
            for image, status in zip(images, found, strict=True)
            if not known.get(image.path, status)
        }
        start = len(images) - len(paths)
        with (
            closing(_read_ahead(list(paths))) as results,
            tqdm(total=len(images), initial=start, desc="images", unit="image", mininterval=1) as bar,
        ):
            for image, status in zip(images, found, strict=True):
                facts = known.get(image.path, status)
                if facts is None:
                    try:
                        facts = next(results)
                    except OSError as error:
                        raise UserError(
                            f"{image.origin}: image {image.image_id} is {image.path}, which cannot be read "
                            f"({error.strerror}); mend the file or remove the image from the annotations"
                        ) from error
                    known.add(image.path, status, facts)
                    bar.update()
                size = (facts["width"], facts["height"])
                if image.size not in (None, size) and size != (0, 0):
                    wrong.append((image, facts))
                yield {
                    "image_id": image.image_id,
                    "split": image.split,
                    "path": _written_path(image.path, manifest_folder),
                    "width": size[0],
                    "height": size[1],
                    "sha256": facts["sha256"],
                    "captions": image.captions,
                    "objects": image.objects,
                }
    if wrong:
        image, facts = wrong[0]
        assert image.size is not None
        raise UserError(
            f"{len(wrong)} of {len(images)} images are not of the size that their boxes were drawn on, the first is "
            f"{image.path}: {facts['width']} x {facts['height']} instead of {image.size[0]} x {image.size[1]}; put the "
            "pictures that the annotations are of into the folder, or give no instances"
        )


def _read_ahead(paths: list[Path]) -> Generator[dict[str, Any], None, None]:
    """sha256 and size of files, in their order, read by several threads a little ahead of who asks."""
    with ThreadPoolExecutor() as pool:
        running: deque[Future[dict[str, Any]]] = deque()
        try:
            for path in paths:
                running.append(pool.submit(_look_at, path))
                if len(running) > _AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _look_at(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    # A damaged image is extraction's to report and count; only its size cannot be known here.
    try:
        width, height = image_size(content, str(path))
    except UserError:
        width = height = 0
    return {"sha256": hashlib.sha256(content).hexdigest(), "width": width, "height": height}


def _written_path(path: Path, manifest_folder: Path | None) -> str:
    if manifest_folder is None or path.is_absolute():
        return os.path.abspath(path)
    return os.path.relpath(path, manifest_folder)


def _read_json(path: Path) -> Any:
    try:
        # outlines take nine tenths of an instances file, and nobody here reads them
        return json.loads(path.read_text(encoding="utf-8"), object_hook=_without_outline)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation file; set it in the dataset section") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from error


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (image["width"], image["height"]) if "width" in image and "height" in image else None


def _key(image_id: int | str) -> str:
    """COCO's twelve digits, as in its file names; other datasets may use strings."""
    return image_id if isinstance(image_id, str) else f"{image_id:012d}"


def _tidy(caption: str, left_out: Counter[str]) -> list[str]:
    """The caption in one line, ending in a full stop, as training expects it; none if it has no word."""
    if not isinstance(caption, str):
        raise TypeError(f"caption that is text, but {caption!r}")
    caption = " ".join(caption.split())
    if not any(character.isalnum() for character in caption):
        left_out["empty captions"] += 1
        return []
    return [caption if caption.endswith((".", "!", "?")) else caption + " ."]
