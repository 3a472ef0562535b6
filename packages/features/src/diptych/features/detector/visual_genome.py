"""The Faster R-CNN trained on Visual Genome behind LXMERT, X-LXMERT and UMT, as far as grid features need it.

ResNeXt-152 32x8d (Xie et al., 2017) with a feature pyramid of 512 channels (Lin et al., 2017); a cell's
feature is the first fully connected layer (`fc6`) of the box head, after its ReLU, on the cell's box
(X-LXMERT, section 4.1 and appendix A). Everything here computes what vqa-maskrcnn-benchmark computes:
strides in the 3x3 convolutions, frozen batch normalisation without epsilon (the importer folds it into the
convolutions), boxes assigned to levels by their area. Where the paper says RoI pooling, the detector has
RoIAlign, as it was before the half-pixel correction; with another pooling its fc6 would be of no use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.features.detector.folder import fill, write_folder
from diptych.features.detector.grid_detector import hash_weights
from diptych.features.grid import CELLS, GRID

ARCHITECTURE = "visual_genome"
LEVELS = (2, 3, 4, 5)  # pyramid level l has stride 2**l
SAMPLES = 2  # of RoIAlign, per bin and axis
_STRIDE = 32
_VERSION = 1  # of what this module computes; a change that changes features raises it


@dataclass(frozen=True)
class VisualGenomeConfig:
    """Sizes; the defaults are the original's.

    stem_channels: of the 7x7 convolution. blocks: residual blocks of the four stages. groups,
    width_per_group: of the 3x3 convolutions of the first stage; the width doubles from stage to stage.
    stage_channels: outputs of the first stage, doubled likewise. pyramid_channels: of every pyramid level.
    bins: a box is pooled to bins x bins. feature_dim: D, of fc6. shorter_side, longer_side: in pixels, what
    the shorter side becomes and the most that the longer one may have. pixel_mean: blue, green, red, 0..255.
    """

    stem_channels: int = 64
    blocks: tuple[int, int, int, int] = (3, 8, 36, 3)
    groups: int = 32
    width_per_group: int = 8
    stage_channels: int = 256
    pyramid_channels: int = 512
    bins: int = 7
    feature_dim: int = 2048
    shorter_side: int = 800
    longer_side: int = 1333
    pixel_mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)

    def stage_sizes(self) -> Iterator[tuple[int, int, int, int]]:
        """Of each stage: blocks, input channels, width of its 3x3 convolutions, output channels."""
        inputs = self.stem_channels
        for stage, blocks in enumerate(self.blocks):
            outputs = self.stage_channels * 2**stage
            yield blocks, inputs, self.groups * self.width_per_group * 2**stage, outputs
            inputs = outputs


def grid_level(height: int, width: int) -> int:
    """The pyramid level, 2 to 5, that the grid's boxes of an input of `height` x `width` pixels belong to.

    Feature pyramid networks, equation 1: level 4 is for boxes of 224 x 224. As the original measures it, a
    box holds its last pixel and so is one pixel larger than its corners differ. At 800 pixels and more for
    the shorter side this gives level 3 for most photos and 2 for nearly square ones.
    """
    size = math.sqrt((height / GRID + 1) * (width / GRID + 1))
    level = math.floor(4 + math.log2(size / 224 + 1e-6))
    return min(max(level, LEVELS[0]), LEVELS[-1])


class VisualGenomeInput(nn.Module):
    """What every backend does alike: from a picture to the network's input, and what is known of a feature."""

    def __init__(self, config: VisualGenomeConfig) -> None:
        super().__init__()
        self.config = config
        self._weights_hash: str | None = None

    @property
    def feature_dim(self) -> int:
        """D, the length of a grid feature."""
        return self.config.feature_dim

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything besides the weights that determines a feature; the same for all backends."""
        return {
            "detector": f"{ARCHITECTURE} {_VERSION}",
            "resize": "shorter side, longer at most, both floored to a multiple",
            "size": [self.config.shorter_side, self.config.longer_side, _STRIDE],
            "interpolation": "bilinear, not antialiased",
            "channels": "BGR",
            "range": [0, 255],
            "mean": list(self.config.pixel_mean),
            "pooling": f"RoIAlign, {self.config.bins} bins, {SAMPLES} samples a bin, not half-pixel aligned",
            "feature": "fc6 after ReLU",
        }

    @property
    def weights_hash(self) -> str:
        """sha256 of the weights in the detector's folder; computed once."""
        if self._weights_hash is None:
            self._weights_hash = hash_weights(self.folder_weights())
        return self._weights_hash

    def folder_weights(self) -> dict[str, Tensor]:
        """The weights by their names in the detector's folder."""
        return self.state_dict()

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width): shorter side 800, unless that makes the longer one more than 1333; then floored to
        multiples of 32 (a side never to nothing, where the original fails).

        X-LXMERT, appendix A, asks for 800 and 1333. The flooring is its code's, so that every level is twice
        as large as the next. Its code also loses a pixel to float rounding at some sizes and so floors 800 to
        768 (where the shorter side has 334, 335 or 385 pixels, for instance); here the paper's 800 holds.
        """
        shorter, longer = min(width, height), max(width, height)
        scale = Fraction(self.config.shorter_side, shorter)
        if round(scale * longer) > self.config.longer_side:
            scale = Fraction(self.config.longer_side, longer)
        rows, columns = (max(_STRIDE, int(scale * side) // _STRIDE * _STRIDE) for side in (height, width))
        return rows, columns

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright RGB image -> float32 [3, H, W], BGR in 0..255 less the mean, resized bilinearly.

        The resize neither rounds nor smooths, as OpenCV's for float images, which the original uses.
        """
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        size = self.input_size(*image.size)
        resized = F.interpolate(self._normalised(pixels), size, mode="bilinear", align_corners=False)
        return resized[0].contiguous()

    def _normalised(self, pixels: Tensor) -> Tensor:
        """RGB float [n, 3, H, W] in 0..255 -> BGR less the mean."""
        return pixels.flip(1) - pixels.new_tensor(self.config.pixel_mean).view(3, 1, 1)


class _Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution, each with its batch normalisation folded in, around a shortcut."""

    def __init__(self, inputs: int, width: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(width, outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(self.conv2(self.conv1(x).relu_()).relu_())
        residual += x if self.shortcut is None else self.shortcut(x)
        return residual.relu_()


class VisualGenomeDetector(VisualGenomeInput):
    """The network on torch's building blocks.

    The pyramid is computed from the top down to the level that the grid's boxes belong to and no further; of
    the box head there is fc6. Region proposals, fc7 and the predictors have no part in grid features.
    """

    def __init__(self, config: VisualGenomeConfig) -> None:
        super().__init__(config)
        self.stem = nn.Conv2d(3, config.stem_channels, 7, stride=2, padding=3)
        stages, laterals, outputs = [], [], []
        for stage, (blocks, inputs, width, channels) in enumerate(config.stage_sizes()):
            first = _Bottleneck(inputs, width, channels, config.groups, stride=1 if stage == 0 else 2)
            rest = (_Bottleneck(channels, width, channels, config.groups, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            laterals.append(nn.Conv2d(channels, config.pyramid_channels, 1))
            outputs.append(nn.Conv2d(config.pyramid_channels, config.pyramid_channels, 3, padding=1))
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(laterals)
        self.outputs = nn.ModuleList(outputs)
        self.fc6 = nn.Linear(config.pyramid_channels * config.bins**2, config.feature_dim)

    def grid_features(self, images: Tensor) -> Tensor:
        """images: float32 [n, 3, H, W], as prepared -> float32 [n, 64, D], row-major, non-negative."""
        level = grid_level(*images.shape[-2:])
        merged = next(islice(self._top_down(images), LEVELS[-1] - level, None))
        # Under autocast the convolutions above may have been in half precision; positions and fc6 are not.
        with torch.autocast(images.device.type, enabled=False):
            pooled = _pooled_output(
                merged.to(self.fc6.weight.dtype), self.outputs[level - LEVELS[0]], self.config.bins
            )
            return self.fc6(pooled).relu_().view(len(images), CELLS, -1).float()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: RGB float [n, 3, H, W] in 0..1, H and W multiples of 32 -> levels 2 to 5 [n, C, h, w]."""
        merged = list(self._top_down(self._normalised(images * 255)))[::-1]
        return [output(level) for output, level in zip(self.outputs, merged, strict=True)]

    def _top_down(self, images: Tensor) -> Iterator[Tensor]:
        """The pyramid's levels before their output convolutions, from 5 down to 2; a finer one is computed
        only when it is asked for. images: [n, 3, H, W], as prepared."""
        x = F.max_pool2d(self.stem(images.to(self.stem.weight.dtype)).relu_(), 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            maps.append(x := stage(x))
        merged = None
        for lateral, stage_map in zip(reversed(self.laterals), reversed(maps), strict=True):
            level = lateral(stage_map)
            if merged is not None:
                level += F.interpolate(merged, level.shape[-2:], mode="nearest")
            yield (merged := level)


def _pooled_output(merged: Tensor, output: nn.Conv2d, bins: int) -> Tensor:
    """RoIAlign of the grid's boxes on `output(merged)`, without computing that map.

    The 3x3 convolution and the pooling are both linear and nothing is between them, so they may change
    places: the map is pooled first, once for each of the convolution's nine shifts, and the convolution then
    runs over bins x bins positions a cell instead of over every pixel. (At 800 x 1056 and paper size, one
    thread: 0.35 s instead of 0.80 s on level 3, 0.44 s instead of 3.1 s on level 2.) The boxes tile the
    input, so pooling is one matrix along each axis.

    merged: [n, C, h, w]. Returns [n*64, C * bins * bins], cells row-major. Equal to
    `torchvision.ops.roi_align(output(merged), boxes, bins, scale, sampling_ratio=2, aligned=False)`.
    """
    count, _, height, width = merged.shape
    rows, columns = (_shifted_bins(size, bins).to(merged) for size in (height, width))
    # Channels last throughout, as the convolutions have it; a bin's three shifts lie side by side.
    shifted = columns @ merged.permute(0, 2, 3, 1)  # [n, h, 3*8*bins, C]
    shifted = (rows @ shifted.flatten(2)).view(count, len(rows), len(columns), -1).permute(0, 3, 1, 2)
    pooled = F.conv2d(shifted, output.weight, output.bias, stride=3)  # [n, C, 8*bins, 8*bins]
    cells = pooled.view(count, -1, GRID, bins, GRID, bins).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count * CELLS, -1)


@lru_cache(maxsize=64)
def _shifted_bins(size: int, bins: int) -> Tensor:
    """Weights of `size` pixels in the grid's bins along one axis: float64 [8 * bins * 3, size].

    Row 3 * bin + s averages the map after a shift by s - 1 pixels, with zeros outside, as a 3x3 convolution
    sees it. Before the half-pixel correction, RoIAlign took the value of pixel k to be that at k and not at
    k + 1/2; points past the last pixel take its value.
    """
    count = GRID * bins * SAMPLES
    points = ((torch.arange(count, dtype=torch.float64) + 0.5) * (size / count)).clamp(max=size - 1)
    # A point at k + f has 1 - f of pixel k and f of the next: a tent of width two around it.
    tents = (1 - (points[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)
    weights = tents.view(GRID * bins, SAMPLES, size).mean(1)
    shifts = [F.pad(weights, (shift, -shift)) for shift in (-1, 0, 1)]
    return torch.stack(shifts, dim=1).view(GRID * bins * 3, size)


def save_visual_genome(
    folder: Path, config: VisualGenomeConfig, weights: dict[str, Tensor], origin: dict[str, Any]
) -> None:
    """Write a detector folder. `origin`, JSON-able, says where the weights are from."""
    content = {"architecture": ARCHITECTURE, "config": asdict(config), "origin": origin}
    write_folder(folder, content, weights)


def read_config(content: dict[str, Any]) -> VisualGenomeConfig:
    """The config of a folder's content."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["config"].items()}
    return VisualGenomeConfig(**values)


def build_detector(content: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> VisualGenomeDetector:
    """The detector of a folder's content; UserError where the weights do not fit."""
    with torch.device("meta"):  # 700 MB are not to be initialised in vain
        detector = VisualGenomeDetector(read_config(content))
    fill(detector, weights, folder, assign=True)
    # Convolutions of both CPUs and GPUs read channels-last maps as they are; others they reorder every time.
    return detector.to(memory_format=torch.channels_last)
