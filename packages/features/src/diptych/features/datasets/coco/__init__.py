"""COCO-format datasets: image folders with captions_*.json (and instances_*.json), or Karpathy's JSON.

COCO 2014 has 82,783 training and 40,504 validation images with captions. Karpathy's splits share the latter between
val (5,000), test (5,000) and restval (30,504); his train is the official one.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diptych.features.datasets.coco.annotations import LeftOut, ListedImage, read_karpathy, read_source
from diptych.features.datasets.coco.config import CocoConfig, CocoSource
from diptych.features.datasets.coco.image_files import find_files
from diptych.features.datasets.coco.placing import PlacedObjects
from diptych.features.errors import UserError
from diptych.features.file_facts import FileFacts
from diptych.features.images import image_orientation, image_size
from diptych.features.processor import usable_cores

__all__ = ["CocoConfig", "CocoSource", "read_coco"]

_AHEAD = 256  # images that are being read while earlier ones are written down


def read_coco(
    config: CocoConfig, seed: int, facts_file: Path | None = None, manifest_folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yield manifest rows, sorted by split and image_id.

    facts_file: keeps sha256 and size of every file that was read, so that a run after a kill, or with another
    `limit`, reads the others only; null keeps nothing. manifest_folder: where the manifest will be; images whose
    folder is given by a relative path get one relative to it (the dataset may move with its manifest), others an
    absolute one. Without it all are absolute.

    Objects are null for an image that no instances file lists, and empty for one that it lists without any; crowd
    regions and boxes without area are left out, the largest object comes first. Boxes lie in the upright picture: where
    a file states the size of the stored one, they are turned with its pixels. Rows that cannot be used are left out and
    told with their ids; more than one in a hundred of a file (`bad_rows.MAX_BAD_SHARE`) refuse it.

    Raises UserError for a missing folder or annotation file, a file that is not such JSON, annotations that do not
    fit together (an id that occurs twice, captions of images that are not listed, boxes of another split), images
    that are missing on disk, have no caption, or are not of the size that their boxes were drawn on. A damaged
    image is left to the stages that decode it.
    """
    left_out = LeftOut()
    if config.karpathy is not None:
        images = read_karpathy(config, left_out)
    else:
        images = [image for source in config.sources for image in read_source(source, seed, left_out)]
    _check_ids(images)
    if bare := [image for image in images if not image.captions]:
        raise UserError(
            f"{bare[0].origin}: {len(bare)} of {len(images)} images have no caption, the first is {bare[0].image_id}; "
            "add captions or remove these images from the file"
        )
    images.sort(key=lambda image: (image.split, image.image_id))
    if config.limit is not None:
        images = _limited(images, config.limit, seed)
    found = find_files(images)
    placed = PlacedObjects(left_out)
    yield from _rows(images, found, placed, facts_file, manifest_folder)
    placed.check()
    _tell(left_out)


def _tell(left_out: LeftOut) -> None:
    """What is left out, on stderr."""
    if left_out.counts:
        counts = ", ".join(f"{n} {kind}" for kind, n in left_out.counts.most_common())
        print("coco: left out", counts, file=sys.stderr)
    for rows in left_out.rows:
        if len(rows):
            print(
                f"coco: {rows.path}: left out {len(rows)} of {rows.total} {rows.what}: {rows}",
                file=sys.stderr,
            )


def _check_ids(images: list[ListedImage]) -> None:
    """Raise UserError for an id that two images have, before anything long begins."""
    first: dict[str, str] = {}
    twice: list[ListedImage] = []
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


def _limited(images: list[ListedImage], limit: int, seed: int) -> list[ListedImage]:
    kept: list[ListedImage] = []
    for split in sorted({image.split for image in images}):
        of_split = [image for image in images if image.split == split]
        chosen = np.random.default_rng(seed).permutation(len(of_split))[:limit]
        kept += [of_split[i] for i in sorted(chosen)]
    return kept


def _rows(
    images: list[ListedImage],
    found: list[os.stat_result],
    placed: PlacedObjects,
    facts_file: Path | None,
    manifest_folder: Path | None,
) -> Iterator[dict[str, Any]]:
    with FileFacts(facts_file) as known:
        # two spellings of a path (a.jpg, b/../a.jpg) are one file, which is read once and known to `known` by this name
        paths = {
            os.path.abspath(image.path): None
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
                try:
                    if facts is None:
                        path, facts = next(results, ("", {}))
                        if path != os.path.abspath(image.path):
                            raise UserError(
                                f"{image.path}: the file changed while the dataset was read; run `dvc repro dataset` again"
                            )
                        known.add(image.path, status, facts)
                        bar.update()
                    elif image.boxes and "orientation" not in facts:  # kept by an older version
                        facts = facts | {"orientation": _orientation(image.path)}
                        known.add(image.path, status, facts)
                except OSError as error:
                    raise UserError(
                        f"{image.origin}: image {image.image_id} is {image.path}, which cannot be read "
                        f"({error.strerror}); mend the file or remove the image from the annotations"
                    ) from error
                yield {
                    "image_id": image.image_id,
                    "split": image.split,
                    "path": _written_path(image, manifest_folder),
                    "width": facts["width"],
                    "height": facts["height"],
                    "sha256": facts["sha256"],
                    "captions": image.captions,
                    "objects": placed.of(
                        image, (facts["width"], facts["height"]), facts.get("orientation", 1)
                    ),
                }


def _read_ahead(paths: list[str]) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Each path with the sha256 and size of its file, in their order, read by several threads a little ahead of who asks."""
    with ThreadPoolExecutor(usable_cores() + 4) as pool:  # some wait for the disk
        running: deque[tuple[str, Future[dict[str, Any]]]] = deque()
        try:
            for path in paths:
                running.append((path, pool.submit(_look_at, Path(path))))
                if len(running) > _AHEAD:
                    first, facts = running.popleft()
                    yield first, facts.result()
            while running:
                first, facts = running.popleft()
                yield first, facts.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _look_at(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    # A damaged image is extraction's to report and count; only its size cannot be known here.
    try:
        width, height = image_size(content, str(path))
    except UserError:
        width = height = 0
    digest = hashlib.sha256(content).hexdigest()
    return {"sha256": digest, "width": width, "height": height, "orientation": _orientation(content)}


def _orientation(picture: Path | bytes) -> int:
    try:
        return image_orientation(picture)
    except UserError:
        return 1


def _written_path(image: ListedImage, manifest_folder: Path | None) -> str:
    path = image.path
    if manifest_folder is None or path.is_absolute():
        written = os.path.abspath(path)
    else:
        written = os.path.relpath(path, manifest_folder)
    try:
        written.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{image.origin}: image {image.image_id} is {os.fsencode(path)!r}, a name that is not UTF-8; rename it"
        ) from None
    return written
