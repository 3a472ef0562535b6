"""What a detector says about given boxes, and which boxes hold the main objects."""

from __future__ import annotations

import pytest
import torch

from diptych.features.detector import Detector, DetectorConfig
from diptych.features.detector.boxes import main_objects, read_boxes

LABELS, COLOURS = ["ball", "boat", "sky"], ["blue", "red"]


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    config = DetectorConfig(image_size=64, channels=(8, 16, 16, 16), pyramid_channels=16, feature_dim=32)
    return Detector(config, LABELS, COLOURS).eval().requires_grad_(False)


def test_boxes_are_read_one_by_one_as_all_together(detector: Detector) -> None:
    """Class and attribute belong to their own image and box, in order."""
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    boxes = [
        torch.tensor([[0.0, 0, 20, 20], [30, 30, 60, 64]]),
        torch.zeros(0, 4),
        torch.tensor([[5.0, 8, 50, 40]]),
    ]
    # heads that answer differently for different boxes
    for head in (detector.heads.box_predictor.classes, detector.heads.box_predictor.attributes):
        head.weight.normal_(std=5)
    classes, attributes = read_boxes(detector, images, boxes)
    assert classes.shape == attributes.shape == (3,)
    alone = [
        read_boxes(detector, images[number : number + 1], [box[None]])
        for number, several in enumerate(boxes)
        for box in several
    ]
    assert classes.tolist() == [int(found) for found, _ in alone]
    assert attributes.tolist() == [int(found) for _, found in alone]
    assert classes.max() <= len(LABELS) and attributes.max() < len(COLOURS)


def test_a_trained_head_is_what_answers(detector: Detector) -> None:
    predictor = detector.heads.box_predictor
    predictor.classes.bias.copy_(torch.tensor([0.0, 0, 100, 0]))
    predictor.attributes.bias.copy_(torch.tensor([0.0, 100]))
    classes, attributes = read_boxes(
        detector, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [torch.tensor([[1.0, 1, 9, 9]])]
    )
    assert (LABELS[int(classes) - 1], COLOURS[int(attributes)]) == ("boat", "red")


def test_the_main_object_is_the_first_with_an_attribute(detector: Detector) -> None:
    scenery = {"bbox": [0.0, 0, 128, 32], "label": "sky", "attributes": []}
    ball = {"bbox": [64.0, 8, 96, 16], "label": "ball", "attributes": ["red"]}
    kite = {"bbox": [0.0, 0, 10, 10], "label": "kite", "attributes": ["pink"]}
    samples = [
        {"width": 128, "height": 32, "objects": [scenery, ball, kite]},
        {"width": 64, "height": 64, "objects": [kite]},
    ]
    boxes, classes, colours = main_objects(detector, samples, 64)
    assert boxes.tolist() == [[32, 16, 48, 32], [0, 0, 10, 10]]
    assert classes.tolist() == [1, -1]
    assert colours.tolist() == [1, -1]
    with pytest.raises(ValueError, match="no object with an attribute"):
        main_objects(detector, [{"width": 8, "height": 8, "objects": [scenery]}], 64)
