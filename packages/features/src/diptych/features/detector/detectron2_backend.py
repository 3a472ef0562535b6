"""The Visual Genome detector on detectron2's building blocks.

For teams whose other models run on detectron2, and a second opinion on ours: ResNet, FPN, pooler and box head
are detectron2's own, from the same detector folder. The whole pyramid is computed, which costs time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import Tensor

from diptych.features.detector.folder import fill
from diptych.features.detector.visual_genome import (
    LEVELS,
    SAMPLES,
    VisualGenomeConfig,
    VisualGenomeInput,
    grid_level,
    read_config,
)
from diptych.features.grid import CELLS, grid_boxes

# The beginnings of names here and in the detector's folder.
_FOLDER_NAMES = {
    "backbone.bottom_up.stem.conv1.": "stem.",
    **{f"backbone.bottom_up.res{level}.": f"stages.{level - LEVELS[0]}." for level in LEVELS},
    **{f"backbone.fpn_lateral{level}.": f"laterals.{level - LEVELS[0]}." for level in LEVELS},
    **{f"backbone.fpn_output{level}.": f"outputs.{level - LEVELS[0]}." for level in LEVELS},
    "box_head.fc1.": "fc6.",
}


class Detectron2Detector(VisualGenomeInput):
    """The same features as `VisualGenomeDetector`, up to rounding (1e-4 in float32 where features are about 1)."""

    def __init__(self, config: VisualGenomeConfig) -> None:
        super().__init__(config)
        # What is left of a frozen batch normalisation after its scale is folded in: a bias.
        norm = "FrozenBN"
        stages = [
            ResNet.make_stage(
                BottleneckBlock,
                blocks,
                in_channels=inputs,
                out_channels=outputs,
                bottleneck_channels=width,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (blocks - 1),
                num_groups=config.groups,
                norm=norm,
                stride_in_1x1=False,
            )
            for stage, (blocks, inputs, width, outputs) in enumerate(config.stage_sizes())
        ]
        names = [f"res{level}" for level in LEVELS]
        bottom_up = ResNet(BasicStem(3, config.stem_channels, norm), stages, out_features=names)
        self.backbone = FPN(bottom_up, names, config.pyramid_channels)
        # One pooler a level: the level is the original's choice, which counts a box's last pixel.
        self.poolers = [
            ROIPooler(config.bins, [1 / 2**level], SAMPLES, pooler_type="ROIAlign") for level in LEVELS
        ]
        pooled = ShapeSpec(channels=config.pyramid_channels, height=config.bins, width=config.bins)
        self.box_head = FastRCNNConvFCHead(pooled, conv_dims=[], fc_dims=[config.feature_dim])

    def folder_weights(self) -> dict[str, Tensor]:
        """The weights by their names in the detector's folder."""
        named = {_folder_name(name): tensor for name, tensor in self.state_dict().items()}
        return {name: tensor for name, tensor in named.items() if name is not None}

    def grid_features(self, images: Tensor) -> Tensor:
        """images: float32 [n, 3, H, W], as prepared -> float32 [n, 64, D], row-major, non-negative."""
        height, width = images.shape[-2:]
        level = grid_level(height, width)
        boxes = Boxes(grid_boxes(height, width).to(images.device))
        features = self.backbone(images)[f"p{level}"]
        # Under autocast the convolutions above may have been in half precision; positions and fc6 are not.
        with torch.autocast(images.device.type, enabled=False):
            pooled = self.poolers[level - LEVELS[0]]([features.float()], [boxes] * len(images))
            return self.box_head(pooled).view(len(images), CELLS, -1)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: RGB float [n, 3, H, W] in 0..1 -> levels 2 to 5 [n, C, h, w]."""
        levels = self.backbone(self._normalised(images * 255))
        return [levels[f"p{level}"] for level in LEVELS]


def _folder_name(name: str) -> str | None:
    """The name in the detector's folder of one of the weights here; None for those that do nothing."""
    if name.endswith((".norm.weight", ".norm.running_mean", ".norm.running_var")):
        return None
    theirs = next(beginning for beginning in _FOLDER_NAMES if name.startswith(beginning))
    return (_FOLDER_NAMES[theirs] + name.removeprefix(theirs)).replace(".norm.bias", ".bias")


def build_detector(content: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> Detectron2Detector:
    """The detector of a folder's content; UserError where the weights do not fit."""
    detector = Detectron2Detector(read_config(content))
    neutral = {n: t for n, t in detector.state_dict().items() if _folder_name(n) is None}
    theirs = {_folder_name(name): name for name in detector.state_dict().keys() - neutral.keys()}
    fill(detector, neutral | {theirs.get(name, name): tensor for name, tensor in weights.items()}, folder)
    return detector
