"""What a detector trained here says about boxes that are given to it: their class and attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.features.detector.network import Detector


@torch.inference_mode()
def read_boxes(detector: Detector, images: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Class and attribute of boxes, as its second stage reads them; no proposals, no thresholds.

    images: uint8 [n, 3, S, S], as `detector.prepare` makes them. boxes: for each image float [m, 4], corners in pixels
    of S. Returns two int64 [sum of m], on the CPU: the class from 1, 0 for background, and the attribute from 0.
    """
    device = next(detector.parameters()).device
    levels = detector.backbone(images.to(device).float() / 255)
    shapes = [(images.shape[-2], images.shape[-1])] * len(images)
    heads = detector.heads
    read = heads.box_head(heads.box_roi_pool(levels, [box.to(device) for box in boxes], shapes))
    classes, _ = heads.box_predictor(read)
    return classes.argmax(1).cpu(), heads.box_predictor.attributes(read).argmax(1).cpu()


def main_objects(
    detector: Detector, samples: Sequence[Mapping[str, Any]], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, class and colour of each picture's main object, the first one that has an attribute.

    samples: as in the shards' json, with "width", "height" and "objects". Returns corners float [n, 4] in pixels of a
    picture of `size` x `size`, classes int64 [n] from 1 and attributes int64 [n] from 0; -1 for a class or attribute
    that the detector does not know. Raises ValueError for a picture without such an object.
    """
    boxes, classes, attributes = [], [], []
    for sample in samples:
        thing = next((thing for thing in sample["objects"] or [] if len(thing["attributes"])), None)
        if thing is None:
            raise ValueError("a picture has no object with an attribute")
        scale = torch.tensor([size / sample["width"], size / sample["height"]] * 2)
        boxes.append(torch.tensor([float(edge) for edge in thing["bbox"]]) * scale)
        label, attribute = thing["label"], thing["attributes"][0]
        classes.append(detector.labels.index(label) + 1 if label in detector.labels else -1)
        attributes.append(detector.attributes.index(attribute) if attribute in detector.attributes else -1)
    return torch.stack(boxes), torch.tensor(classes), torch.tensor(attributes)
