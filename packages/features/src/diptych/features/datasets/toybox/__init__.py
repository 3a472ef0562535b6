"""Toybox: a procedural world of captioned scenes, small and exact.

Every picture's boxes, classes and colours are known, every network of the pipeline can be trained
on it from scratch on two cores, and nothing needs to be downloaded.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diptych.features.datasets.toybox.drawing import draw
from diptych.features.datasets.toybox.grammar import GrammarConfig, describe
from diptych.features.datasets.toybox.world import CLASSES, COLORS, SCENERIES, UNSEEN, SceneConfig, compose

__all__ = [
    "CLASSES",
    "COLORS",
    "SCENERIES",
    "UNSEEN",
    "GrammarConfig",
    "SceneConfig",
    "ToyboxConfig",
    "build_toybox",
]

CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True)
class ToyboxConfig:
    """Toybox's size and chances.

    `train`, `val`, `test`, `compositional` and `ablation` count pictures: `compositional` holds main
    objects in pairs of colour and class that no other split shows; `ablation` is more of `test`, for
    what compares models by smaller differences. `image_size` is the side in pixels.
    """

    train: int
    val: int
    test: int
    compositional: int
    ablation: int
    image_size: int
    scenes: SceneConfig
    captions: GrammarConfig


def build_toybox(config: ToyboxConfig, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Draw every picture into `folder`/images and yield its manifest row.

    A scene depends on (seed, split, number), its captions on the same and the grammar: another
    grammar leaves the pictures as they are. Files are JPEG (quality 95, full colour resolution).
    """
    splits = {
        "train": config.train,
        "val": config.val,
        "test": config.test,
        "compositional": config.compositional,
        "ablation": config.ablation,
    }
    (folder / "images").mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=sum(splits.values()), unit="picture", desc="toybox", mininterval=1)
    for split_number, (split, count) in enumerate(splits.items()):
        for number in range(count):
            scene_rng, caption_rng = (
                np.random.default_rng((seed, split_number, number, stream)) for stream in range(2)
            )
            scene = compose(scene_rng, config.scenes, unseen=split == "compositional")
            encoded = io.BytesIO()
            draw(scene, config.image_size).save(encoded, "JPEG", quality=95, subsampling=0)
            content = encoded.getvalue()
            path = os.path.join("images", f"{split}-{number:06d}.jpg")
            (folder / path).write_bytes(content)
            yield {
                "image_id": f"{split}-{number:06d}",
                "split": split,
                "path": path,
                "width": config.image_size,
                "height": config.image_size,
                "sha256": hashlib.sha256(content).hexdigest(),
                "captions": [
                    describe(scene, caption_rng, config.captions) for _ in range(CAPTIONS_PER_IMAGE)
                ],
                "objects": _objects(scene, config.image_size),
            }
            bar.update()
    bar.close()


def _objects(scene, size: int) -> list[dict[str, Any]]:
    """Main object, second, third, the main object's equals, and last the scenery as a whole.

    The scenery is an object as "sky" and "grass" are in Visual Genome: the detector learns it, and
    grid features then tell sea from sand where nothing else is.
    """
    scale = size / 64
    objects = [
        {"bbox": [value * scale for value in thing.box], "label": thing.label, "attributes": [thing.color]}
        for thing in scene.things
    ]
    whole = {"bbox": [0.0, 0.0, float(size), float(size)], "label": scene.scenery, "attributes": []}
    return [*objects, whole]
