"""The pipeline's own detector as one that finds objects in pictures, for the semantic accuracy of `evaluate`.

It made the features that paintings are made of, so it is no independent judge: real pictures and reconstructions beside
paintings are what its figures compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.eval.images.objects import FoundObject, ObjectFinder
from diptych.features.detector.boxes import read_boxes
from diptych.features.detector.network import Detector
from pipelines.measuring.detection import prepared

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.features.detector.grid_detector import PyramidGridDetector

LEAST_SCORE = 0.5


def object_finder(detector: PyramidGridDetector) -> ObjectFinder | None:
    """What finds objects and reads their attributes; None for a detector that only makes features."""
    import torch

    if not isinstance(detector, Detector):
        return None

    @torch.inference_mode()
    def find(images: Tensor) -> list[list[FoundObject]]:
        ready = prepared(detector, images)
        device = next(detector.parameters()).device
        found = detector.detect(ready.to(device).float() / 255)
        boxes = [each["boxes"][each["scores"] >= LEAST_SCORE] for each in found]
        labels = [each["labels"][each["scores"] >= LEAST_SCORE].tolist() for each in found]
        if not detector.attributes or not any(labels):
            return [[(detector.labels[number - 1], None) for number in each] for each in labels]
        _, read = read_boxes(detector, ready, boxes)
        attributes = iter(detector.attributes[number] for number in read.tolist())
        return [[(detector.labels[number - 1], next(attributes)) for number in each] for each in labels]

    key = detector.weights_hash
    model = f"the pipeline's detector, scores from {LEAST_SCORE}, weights {key[:16]}"
    return ObjectFinder(
        model, f"{LEAST_SCORE} {key}", tuple(detector.labels), tuple(detector.attributes), find
    )
