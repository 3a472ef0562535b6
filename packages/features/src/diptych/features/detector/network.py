"""Faster R-CNN (Ren et al., 2015) with class, attribute and grid heads, from torchvision's parts.

The detector is trained to find objects, name them and tell their attributes, as the Visual Genome
detector behind X-LXMERT was; the features of the fixed 8x8 grid are what its first fully connected
layer (`fc6`) makes of the grid's boxes (X-LXMERT, section 4.1).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, batched_nms, roi_align

from diptych.features.detector.folder import fill, write_folder
from diptych.features.detector.grid_detector import hash_weights
from diptych.features.errors import UserError
from diptych.features.grid import CELLS, cell_targets, grid_boxes, pool_grid
from diptych.features.images import resize_square, to_uint8_tensor
from diptych.features.ranges import check_at_least

ARCHITECTURE = "diptych"
_VERSION = 1  # of what this module computes; a change that changes features raises it
_LEVELS = ("p2", "p3", "p4")
_BINS = 4
_REGION_OVERLAP = 0.5  # of two regions of one class the surer stays
# what of `region_features` no weight says; another way to choose is another text
REGION_CHOICE = f"60 proposals, the surest of a class up to an overlap of {_REGION_OVERLAP}"


@dataclass(frozen=True)
class DetectorConfig:
    """Architecture. `image_size`: side in pixels to which pictures are resized; `channels`: width of
    the stem and of the stages at strides 4, 8 and 16; `pyramid_channels`: of every pyramid level;
    `feature_dim`: D, the size of `fc6` and so of a grid feature."""

    image_size: int
    channels: tuple[int, int, int, int]
    pyramid_channels: int
    feature_dim: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels", "pyramid_channels", "feature_dim")
        check_at_least(
            self, 16, "image_size"
        )  # of the coarsest level, of stride 16, something has to be there


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions that halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + residual)


class Backbone(nn.Module):
    """Stem and three residual stages with a feature pyramid over strides 4, 8 and 16."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        stem, *stages = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        widths = (stem, *stages)
        self.stages = nn.ModuleList(_Block(a, b) for a, b in pairwise(widths))
        self.pyramid = FeaturePyramidNetwork(list(stages), config.pyramid_channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """images: float [n, 3, H, W] in 0..1 -> p2, p3, p4 (strides 4, 8, 16), each [n, C, h, w]."""
        x = self.stem((images - 0.5) / 0.25)
        levels = OrderedDict()
        for name, stage in zip(_LEVELS, self.stages, strict=True):
            levels[name] = x = stage(x)
        return self.pyramid(levels)


class BoxPool(nn.Module):
    """RoIAlign of boxes in pixels on the finest level: half-pixel aligned, one sampling point a bin, as `pool_grid`."""

    def forward(
        self, levels: OrderedDict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Returns [m, C, bins, bins], the boxes of all images one after the other."""
        level = levels[_LEVELS[0]]
        return roi_align(level, boxes, _BINS, level.shape[-1] / shapes[0][1], sampling_ratio=1, aligned=True)


class BoxHead(nn.Module):
    """`fc6` and `fc7` over pooled boxes; `fc6` after its ReLU is the feature that Diptych uses."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.fc6 = nn.Linear(config.pyramid_channels * _BINS * _BINS, config.feature_dim)
        self.fc7 = nn.Linear(config.feature_dim, config.feature_dim)

    def features(self, pooled: Tensor) -> Tensor:
        """pooled: [m, C, bins, bins] -> [m, D], non-negative."""
        return F.relu(self.fc6(pooled.flatten(1)))

    def forward(self, pooled: Tensor) -> Tensor:
        return F.relu(self.fc7(self.features(pooled)))


class BoxPredictor(nn.Module):
    """Class scores (0 is the background), box deltas per class, attribute scores per box."""

    def __init__(self, feature_dim: int, classes: int, attributes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(feature_dim, classes)
        self.boxes = nn.Linear(feature_dim, 4 * classes)
        self.attributes = nn.Linear(feature_dim, max(attributes, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(x).float(), self.boxes(x).float()


class _Heads(RoIHeads):
    """torchvision's RoI heads with an attribute classifier over the boxes that hold an object."""

    def forward(self, features, proposals, image_shapes, targets=None):
        if not self.training:
            x = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
            logits, deltas = self.box_predictor(x)
            boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
            detections = [
                {"boxes": b, "scores": s, "labels": c} for b, s, c in zip(boxes, scores, labels, strict=True)
            ]
            return detections, {}
        proposals, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        x = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(x)
        class_loss, box_loss = fastrcnn_loss(logits, deltas, labels, regression_targets)
        attributes = torch.cat(
            [_append(target["attributes"], -1)[index] for target, index in zip(targets, matched, strict=True)]
        )
        attributes = torch.where(torch.cat(labels) > 0, attributes, torch.full_like(attributes, -1))
        attribute_loss = _masked_cross_entropy(self.box_predictor.attributes(x).float(), attributes)
        return [], {"box_class": class_loss, "box_delta": box_loss, "box_attribute": attribute_loss}


class Detector(nn.Module):
    """Faster R-CNN whose `fc6` also describes the 8x8 grid.

    The grid heads exist for training only: from a cell's feature they tell class and attribute of the
    object in the cell and where the object's box lies around it. Without them colour does not survive
    clustering (0.4 of object cells readable, against 0.7 to 0.98 with them).
    """

    def __init__(self, config: DetectorConfig, labels: list[str], attributes: list[str]) -> None:
        super().__init__()
        self.config, self.labels, self.attributes = config, list(labels), list(attributes)
        self._weights_hash: str | None = None
        self.backbone = Backbone(config)
        size = config.image_size
        anchors = AnchorGenerator(
            sizes=tuple((size * s,) for s in (0.25, 0.4, 0.9)), aspect_ratios=((0.7, 1.0, 1.4),) * 3
        )
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(config.pyramid_channels, 3),
            fg_iou_thresh=0.6,
            bg_iou_thresh=0.3,
            batch_size_per_image=48,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 100, "testing": 100},
            post_nms_top_n={"training": 40, "testing": 60},
            nms_thresh=0.7,
        )
        self.heads = _Heads(
            BoxPool(),
            BoxHead(config),
            BoxPredictor(config.feature_dim, len(labels) + 1, len(attributes)),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=24,
            positive_fraction=0.5,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=20,
        )
        self.grid_class = nn.Linear(config.feature_dim, len(labels) + 1)
        self.grid_attribute = nn.Linear(config.feature_dim, max(len(attributes), 1))
        self.grid_box = nn.Linear(config.feature_dim, 4)

    @property
    def feature_dim(self) -> int:
        """D, the length of a grid feature."""
        return self.config.feature_dim

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything besides the weights that determines a feature, JSON-able."""
        return {
            "detector": f"{ARCHITECTURE} {_VERSION}",
            "resize": "square",
            "size": self.config.image_size,
            "interpolation": "bicubic, antialiased",
            "channels": "RGB",
            "range": [0, 1],
            "pooling": f"RoIAlign, {_BINS} bins, 1 sample a bin, half-pixel aligned",
            "feature": "fc6 after ReLU",
        }

    @property
    def weights_hash(self) -> str:
        """sha256 of all weights and buffers in the order of their names."""
        if any(weight.requires_grad for weight in self.parameters()):
            return hash_weights(self.state_dict())  # still in training: the next step changes it
        if self._weights_hash is None:
            self._weights_hash = hash_weights(self.state_dict())
        return self._weights_hash

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Every picture becomes a square of `image_size`."""
        return self.config.image_size, self.config.image_size

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright RGB image -> uint8 [3, S, S]."""
        return to_uint8_tensor(resize_square(image, self.config.image_size))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: float [n, 3, H, W] in 0..1 -> the feature maps at strides 4, 8 and 16."""
        return list(self.backbone(images).values())

    def grid_features(self, images: Tensor) -> Tensor:
        """images: uint8 [n, 3, S, S], as prepared -> float32 [n, 64, D], row-major, non-negative.

        Only what the grid needs is computed: no proposals, no classification.
        """
        pooled = pool_grid(self.backbone(images.float() / 255)["p2"], _BINS)
        return self.heads.box_head.features(pooled).float().view(len(images), CELLS, -1)

    def region_features(self, images: Tensor, regions: int) -> Tensor:
        """images: uint8 [n, 3, S, S], as prepared -> float32 [n, regions, D], non-negative: `fc6` of the proposals that most surely
        show something, the surest first (Anderson et al. 2018, section 3.1).

        Of proposals of one class that cover each other the surest stays; where an image has too few, the others follow. Raises
        UserError where `regions` are more than proposals.
        """
        levels, shapes = self._levels(images.float() / 255)
        proposals, _ = self.rpn(ImageList(images, shapes), levels)
        rows = self.heads.box_head.features(self.heads.box_roi_pool(levels, proposals, shapes)).float()
        logits, _ = self.heads.box_predictor(F.relu(self.heads.box_head.fc7(rows)))
        counts = [len(boxes) for boxes in proposals]
        if min(counts) < regions:
            raise UserError(
                f"an image has {min(counts)} proposals, but {regions} regions are wanted; want fewer"
            )
        kept = []
        for boxes, features, classes in zip(proposals, rows.split(counts), logits.split(counts), strict=True):
            scores, labels = classes.softmax(-1)[:, 1:].max(-1)
            first = batched_nms(boxes, scores, labels, _REGION_OVERLAP)
            order = scores.argsort(descending=True, stable=True)
            rest = order[~torch.isin(order, first)]
            kept.append(features[torch.cat([first, rest])[:regions]])
        return torch.stack(kept)

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Detections per image: boxes float [m, 4] in pixels, scores [m], labels int64 [m] from 1."""
        levels, shapes = self._levels(images)
        proposals, _ = self.rpn(ImageList(images, shapes), levels)
        detections, _ = self.heads(levels, proposals, shapes)
        return detections

    def losses(self, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Training losses by name; the detection losses are those of Faster R-CNN.

        targets, per image: boxes float [m, 4] pixels, labels int64 [m] from 1, attributes int64 [m]
        (-1: none known), cell_object int64 [64] (see `cell_targets`).
        """
        levels, shapes = self._levels(images)
        proposals, rpn_losses = self.rpn(ImageList(images, shapes), levels, targets)
        _, head_losses = self.heads(levels, proposals, shapes, targets)
        return {**rpn_losses, **head_losses, **self._grid_losses(levels["p2"], targets, images.shape[-2:])}

    def _levels(self, images: Tensor) -> tuple[OrderedDict[str, Tensor], list[tuple[int, int]]]:
        # Boxes need float32: the pyramid leaves autocast's bfloat16 here.
        levels = OrderedDict((name, level.float()) for name, level in self.backbone(images).items())
        return levels, [tuple(images.shape[-2:])] * len(images)

    def _grid_losses(self, level: Tensor, targets: list[dict[str, Tensor]], shape) -> dict[str, Tensor]:
        features = self.heads.box_head.features(pool_grid(level, _BINS))
        # k-means sees Euclidean distance, not what is linearly separable. Unit noise makes the network
        # spread what its heads must tell apart, and the penalty shrinks all that they do not need: an
        # information bottleneck, after which colour and class are what clusters differ in.
        noisy = features + torch.randn_like(features)
        labels, attributes, offsets = [], [], []
        cells = grid_boxes(*shape).to(features.device)
        for target in targets:
            index = target["cell_object"]  # -1, an empty cell, takes the last row: what was appended
            labels.append(_append(target["labels"], 0)[index])
            attributes.append(_append(target["attributes"], -1)[index])
            offsets.append((_append(target["boxes"], 0)[index] - cells) / (0.25 * shape[-1]))
        label, attribute, offset = torch.cat(labels), torch.cat(attributes), torch.cat(offsets)
        # Scenery covers most cells; objects weigh as much as all of it together.
        is_object = attribute >= 0
        weight = torch.where(is_object, (~is_object).sum() / is_object.sum().clamp(min=1), torch.ones(()))
        class_loss = F.cross_entropy(self.grid_class(noisy).float(), label, reduction="none")
        box_loss = F.smooth_l1_loss(self.grid_box(noisy).float(), offset, reduction="none").sum(1)
        return {
            "grid_class": (class_loss * weight).sum() / weight.sum(),
            "grid_attribute": _masked_cross_entropy(self.grid_attribute(noisy).float(), attribute),
            "grid_box": (box_loss * is_object).sum() / is_object.sum().clamp(min=1),
            "grid_size": features.float().square().mean(),
        }


def _append(rows: Tensor, value: int) -> Tensor:
    """`rows` and one more that holds `value`: what is read where a picture has no object."""
    return torch.cat([rows, rows.new_full((1, *rows.shape[1:]), value)])


def _masked_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy where target >= 0; zero where nothing is known."""
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / (target >= 0).sum().clamp(
        min=1
    )


def cell_objects(boxes: Tensor, labels: Tensor, size: int) -> Tensor:
    """Index of each cell's object, int64 [64], for a picture of `size` x `size` pixels."""
    return cell_targets(boxes, labels, size, size)[0]


def save_detector(detector: Detector, folder: Path) -> None:
    """Write config.json and model.safetensors into `folder`."""
    content = {
        "architecture": ARCHITECTURE,
        "config": asdict(detector.config),
        "labels": detector.labels,
        "attributes": detector.attributes,
    }
    write_folder(folder, content, detector.state_dict())


def build_detector(content: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> Detector:
    """The detector of a folder's content; UserError where the weights do not fit."""
    config = content["config"] | {"channels": tuple(content["config"]["channels"])}
    detector = Detector(DetectorConfig(**config), content["labels"], content["attributes"])
    fill(detector, weights, folder)
    return detector
