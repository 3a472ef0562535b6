"""COCO-format datasets: image folders with captions_*.json (and instances_*.json), or Karpathy's JSON."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..images import image_size


@dataclass(frozen=True)
class CocoSource:
    """One pair of annotation files. `split` is the split of its images, or "val/test": half of them each,
    drawn with the seed. `instances` may be null; without it there are no objects."""

    split: str
    images: Path
    captions: Path
    instances: Path | None


@dataclass(frozen=True)
class CocoConfig:
    """Either `sources`, or `karpathy`: dataset_coco.json with `images`, the folder that holds its file paths
    (train2014/, val2014/); its split "restval" counts as train only if `restval` is true (the papers
    train on the official 82,783). Karpathy's file has no boxes: `instances` are COCO's files that do, empty for
    none. `limit`: at most so many images a split, drawn with the seed; null for all."""

    sources: list[CocoSource]
    karpathy: Path | None
    images: Path | None
    instances: list[Path]
    restval: bool
    limit: int | None


@dataclass
class _Image:
    image_id: str
    split: str
    path: Path
    origin: str
    captions: list[str]
    objects: list[dict[str, Any]] | None


def read_coco(config: CocoConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Yield manifest rows with absolute paths, sorted by split and image_id.

    Raises UserError for a missing folder or annotation file, a file that is not such JSON, an annotation that
    names an image that is not there, an image without a caption. A damaged image is left to the stages that decode it.
    """
    if config.karpathy is not None:
        images = _read_karpathy(config)
    else:
        if not config.sources:
            raise UserError("dataset.coco: give `sources` or `karpathy`")
        images = [image for source in config.sources for image in _read_source(source, seed)]
    if bare := [image for image in images if not image.captions]:
        raise UserError(
            f"{bare[0].origin}: {len(bare)} of {len(images)} images have no caption, the first is {bare[0].image_id}; "
            "add captions or remove these images from the file"
        )
    images.sort(key=lambda image: (image.split, image.image_id))
    if config.limit is not None:
        images = _limited(images, config.limit, seed)
    with ThreadPoolExecutor(4) as pool:
        bar = tqdm(pool.map(_row, images), total=len(images), desc="images", unit="image", mininterval=1)
        yield from bar


def _read_source(source: CocoSource, seed: int) -> list[_Image]:
    content = _read_json(source.captions)
    if not source.images.is_dir():
        raise UserError(f"{source.images}: no such image folder; set dataset.coco.sources[].images")
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(_tidy(annotation["caption"]))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{source.captions}: not COCO captions (no {error}); expected images and annotations"
        ) from error
    for image_id in captions.keys() - files.keys():
        raise UserError(f"{source.captions}: a caption names image {image_id}, which the file does not list")
    objects = _read_instances(source.instances) if source.instances else None
    splits = dict.fromkeys(files, source.split)
    if source.split == "val/test":
        order = np.random.default_rng(seed).permutation(sorted(files))
        splits = {i.item(): ("val", "test")[n % 2] for n, i in enumerate(order)}
    return [
        _Image(
            image_id=_key(image_id),
            split=splits[image_id],
            path=(source.images / name).absolute(),
            origin=str(source.captions),
            captions=captions.get(image_id, []),
            objects=None if objects is None else objects.get(image_id, []),
        )
        for image_id, name in files.items()
    ]


def _read_instances(path: Path) -> dict[int, list[dict[str, Any]]]:
    content = _read_json(path)
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                continue
            x, y, width, height = annotation["bbox"]
            objects[annotation["image_id"]].append(
                {
                    "bbox": [x, y, x + width, y + height],
                    "label": names[annotation["category_id"]],
                    "attributes": [],
                }
            )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not COCO instances ({error}); expected categories and annotations"
        ) from error
    # The largest object first: what a caption is about, as far as boxes can tell.
    for found in objects.values():
        found.sort(key=lambda o: -(o["bbox"][2] - o["bbox"][0]) * (o["bbox"][3] - o["bbox"][1]))
    return objects


def _read_karpathy(config: CocoConfig) -> list[_Image]:
    if config.images is None or not config.images.is_dir():
        raise UserError(f"{config.images}: no such image folder; set dataset.coco.images")
    assert config.karpathy is not None
    content = _read_json(config.karpathy)
    objects = {key: found for path in config.instances for key, found in _read_instances(path).items()}
    images = []
    try:
        for image in content["images"]:
            split = image["split"]
            if split == "restval":
                if not config.restval:
                    continue
                split = "train"
            images.append(
                _Image(
                    image_id=_key(image["cocoid"] if "cocoid" in image else image["imgid"]),
                    split=split,
                    path=(config.images / image.get("filepath", "") / image["filename"]).absolute(),
                    origin=str(config.karpathy),
                    captions=[_tidy(sentence["raw"]) for sentence in image["sentences"]],
                    objects=objects.get(image.get("cocoid"), []) if config.instances else None,
                )
            )
    except (KeyError, TypeError) as error:
        raise UserError(f"{config.karpathy}: not Karpathy's dataset_coco.json (no {error})") from error
    return images


def _limited(images: list[_Image], limit: int, seed: int) -> list[_Image]:
    kept: list[_Image] = []
    for split in sorted({image.split for image in images}):
        of_split = [image for image in images if image.split == split]
        chosen = np.random.default_rng(seed).permutation(len(of_split))[:limit]
        kept += [of_split[i] for i in sorted(chosen)]
    return kept


def _row(image: _Image) -> dict[str, Any]:
    try:
        content = image.path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{image.origin}: image {image.image_id} is {image.path}, which is missing; "
            "complete the image folder or remove the image from the annotations"
        ) from error
    # A damaged image is extraction's to report and count; only its size cannot be known here.
    try:
        width, height = image_size(content, str(image.path))
    except UserError:
        width = height = 0
    return {
        "image_id": image.image_id,
        "split": image.split,
        "path": str(image.path),
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(content).hexdigest(),
        "captions": image.captions,
        "objects": image.objects,
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation file; set it in the dataset section") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from error


def _key(image_id: int | str) -> str:
    """COCO's twelve digits, as in its file names; other datasets may use strings."""
    return image_id if isinstance(image_id, str) else f"{image_id:012d}"


def _tidy(caption: str) -> str:
    """One line, ending in a full stop, as training expects captions."""
    caption = " ".join(caption.split())
    return caption if caption.endswith((".", "!", "?")) else caption + " ."
