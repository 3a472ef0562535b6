"""An image generator that only paints: the same function, its weights merged and rearranged.

Nearly all work of the paper's network is the adaptive norms' modulation: three 3x3 convolutions with 128 channels on
a map that is only the 8x8 grid drawn large, up to 256x256. What training cannot have, or need not:

- Spectral norm is divided out once.
- The first of the three convolutions is linear in the 8x8 map, and so is drawing large. Both together are a product
  with one small matrix per axis: every row of the result is a mixture of 8 rows of the grid under 3 taps, 24 in all,
  zero padding at the picture's edge included. Exact, for a tenth of the operations.
- Its ReLU keeps the other two, scale and shift, at full resolution; they become one convolution with twice the
  channels. Half the resolution, in the last norm alone, changed pixels of random networks by up to 0.03 to 0.14: by
  the padding at the edge, and by 0.003 to 0.05 inside, where the ReLU has its kinks.
- On a CPU all this runs over strips of rows, image by image, that stay in the cache and need no fresh memory: at
  256x256 the 128 channels are 32 MiB an image.
- Where modulation is computed on the grid (Toybox), the two convolutions become one as well.

`python -m benchmarks.image_generator` measures it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from diptych.model.networks.image_generator import (
    GRID_SIZE,
    AdaptiveInstanceNorm,
    ImageGenerator,
    normalise,
    resize,
)

STRIP_BYTES = 2 << 20
PIECE_BYTES = 8 << 20


class InferenceImageGenerator(ImageGenerator):
    """A fast copy of `generator`, on its device and in its dtype; later changes of `generator` are not seen.

    Called like `generator` in eval mode, with the same pictures up to rounding. Differentiable in the grid, not in the
    weights. It stays in eval mode: it has no noise. bfloat16 through autocast
    (`diptych.model.precision.autocast_context`), where the processor gains by it.
    """

    def __init__(self, generator: ImageGenerator) -> None:
        super().__init__(generator.config)
        self.to(generator.feature_mean)
        self.load_state_dict(generator.state_dict())
        super().train(False).requires_grad_(False)
        for module in list(self.modules()):
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")
        side = GRID_SIZE
        for block in (*self.grid_blocks, *self.blocks):
            block.norm1 = merged(block.norm1, side)
            side *= 2 if block.upsample else 1
            block.norm2 = merged(block.norm2, side)
        self.to(memory_format=torch.channels_last)
        largest = max(
            channels * (GRID_SIZE << number) ** 2
            for number, channels in enumerate(self.config.block_channels)
        )
        # Images at a time on a CPU: as many as keep the largest map in the cache.
        self.piece = max(1, PIECE_BYTES // (largest * self.feature_mean.element_size()))

    def forward(self, grid: Tensor) -> Tensor:
        """grid: float [n, 64, D] -> float32 [n, 3, S, S] in -1..1."""
        if grid.device.type != "cpu":
            return super().forward(grid)
        return torch.cat(
            [super(InferenceImageGenerator, self).forward(piece) for piece in grid.split(self.piece)]
        )

    def train(self, mode: bool = True) -> InferenceImageGenerator:
        """Stays in eval mode."""
        return self


def merged(norm: AdaptiveInstanceNorm, side: int) -> nn.Module:
    """The norm of maps with `side` pixels a side in its fast form."""
    return (NormByGrid(norm) if norm.at_grid else NormByRows(norm, side)).eval()


def scale_and_shift(norm: AdaptiveInstanceNorm) -> nn.Conv2d:
    """One convolution for both: the first half of its channels is 1 + scale, the second half the shift."""
    weight = torch.cat([norm.scale.weight, norm.shift.weight])
    assert norm.scale.bias is not None and norm.shift.bias is not None
    with torch.device("meta"):
        convolution = nn.Conv2d(
            norm.scale.in_channels, len(weight), norm.scale.kernel_size, padding=norm.scale.padding
        )
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(torch.cat([norm.scale.bias + 1, norm.shift.bias]), requires_grad=False)
    return convolution


class NormByGrid(nn.Module):
    """Scale and shift at 8x8, drawn large."""

    def __init__(self, norm: AdaptiveInstanceNorm) -> None:
        super().__init__()
        self.shared, self.scale_and_shift = norm.shared, scale_and_shift(norm)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """features [n, C, H, W], modulation [n, M, 8, 8] -> [n, C, H, W]."""
        parameters = self.scale_and_shift(functional.relu(self.shared(modulation), inplace=True))
        scale, shift = resize(parameters, features.shape[-2:]).chunk(2, 1)
        return torch.addcmul(shift, normalise(features), scale)


class NormByRows(nn.Module):
    """Scale and shift at the resolution of the features, strip by strip."""

    places: Tensor
    columns: Tensor

    def __init__(self, norm: AdaptiveInstanceNorm, side: int) -> None:
        super().__init__()
        weight, bias = norm.shared.weight, norm.shared.bias
        assert bias is not None
        _, channels, kernel, _ = weight.shape
        self.kernel = kernel
        # [ky * kx * hidden, M, 1, 1]: what each tap makes of each cell of the 8x8 map
        self.taps = nn.Parameter(
            weight.permute(2, 3, 0, 1).reshape(-1, channels, 1, 1).contiguous(), requires_grad=False
        )
        self.bias = nn.Parameter(bias, requires_grad=False)
        columns = drawn_large(side, kernel).to(weight)
        self.register_buffer("columns", columns, persistent=False)
        # One more column, of ones, brings in the bias; rows of zeros above and below are the padding of what follows.
        rows = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)
        self.register_buffer(
            "places", functional.pad(rows, (0, 0, kernel // 2, kernel // 2)), persistent=False
        )
        self.scale_and_shift = scale_and_shift(norm)
        self.scale_and_shift.padding = (0, kernel // 2)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """features [n, C, S, S], modulation [n, M, 8, 8] -> [n, C, S, S]."""
        count, _, side, _ = features.shape
        kernel, hidden = self.kernel, len(self.bias)
        taps = functional.conv2d(modulation, self.taps).unflatten(1, (kernel, kernel, hidden))
        taps = taps.permute(0, 1, 4, 2, 5, 3)  # [n, ky, 8, kx, 8, hidden]
        rows = self.columns @ taps.reshape(count, kernel * GRID_SIZE, kernel * GRID_SIZE, hidden)
        rows = torch.cat([rows.flatten(2), self.bias.repeat(side).expand(count, 1, -1).to(rows.dtype)], 1)
        normalised = normalise(features)
        strips = []
        height = self._strip_height(rows)
        for first in range(0, side, height):
            last = min(first + height, side)
            # [n, height + 2, S * hidden]
            strip = functional.relu(self.places[first : last + kernel - 1] @ rows, inplace=True)
            strip = strip.unflatten(2, (side, hidden)).permute(0, 3, 1, 2)  # channels-last
            scale, shift = self.scale_and_shift(strip).chunk(2, 1)
            strips.append(torch.addcmul(shift, normalised[:, :, first:last], scale))
        return torch.cat(strips, 2)

    def _strip_height(self, rows: Tensor) -> int:
        """Rows in a strip: all of them except on a CPU."""
        if rows.device.type != "cpu":
            return len(self.columns)
        return max(1, STRIP_BYTES // (len(rows) * rows.shape[2] * rows.element_size()))


def drawn_large(side: int, kernel: int) -> Tensor:
    """The matrix [S, kernel * 8] that draws 8 cells as S pixels, once for each tap of a zero-padded convolution.

    Column block t gives at pixel p what the tap t reads there: the bilinear picture at p + t - kernel // 2, or zero
    outside.
    """
    cells = torch.eye(GRID_SIZE)[None]  # [1, cell, position]
    drawn = functional.interpolate(cells, size=side, mode="linear", align_corners=False)[0].T
    padded = functional.pad(drawn, (0, 0, kernel // 2, kernel // 2))
    return torch.cat([padded[tap : tap + side] for tap in range(kernel)], 1)
