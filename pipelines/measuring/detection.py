"""What the pipeline's own detector sees in pictures that were painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from diptych.features.detector.boxes import main_objects, read_boxes
from diptych.features.detector.network import Detector
from diptych.model.pixels import to_image

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.features.detector.grid_detector import PyramidGridDetector

BATCH_SIZE = 50


def prepared(detector: PyramidGridDetector, images: Tensor) -> Tensor:
    """Pictures uint8 [n, 3, S, S] as the detector's input."""
    import torch

    return torch.stack([detector.prepare(to_image(image)) for image in images])


def has_main_objects(
    detector: PyramidGridDetector, samples: Sequence[Mapping[str, Any]]
) -> TypeGuard[Detector]:
    """Whether :func:`main_object_shares` can be measured: the detector knows attributes, and every picture has an object
    with one. samples: as in the shards' json."""
    return isinstance(detector, Detector) and all(
        any(len(thing["attributes"]) for thing in sample["objects"] or []) for sample in samples
    )


def main_object_shares(
    detector: Detector, images: Tensor, samples: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Shares (0..1) of pictures uint8 [n, 3, S, S] in whose main object's box the detector reads the right class
    (`main_class`), colour (`main_color`) and both (`main_object`)."""
    import torch

    boxes, classes, colours = main_objects(detector, samples, detector.config.image_size)
    found = [
        read_boxes(
            detector,
            prepared(detector, images[start : start + BATCH_SIZE]),
            list(boxes[start : start + BATCH_SIZE, None]),
        )
        for start in range(0, len(images), BATCH_SIZE)
    ]
    right_class = torch.cat([found_classes for found_classes, _ in found]) == classes
    right_colour = torch.cat([found_colours for _, found_colours in found]) == colours
    right = {"main_class": right_class, "main_color": right_colour, "main_object": right_class & right_colour}
    return {name: float(values.float().mean()) for name, values in right.items()}
