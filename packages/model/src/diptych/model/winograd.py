"""3x3 convolutions that learn, with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray 2016).

A tile of 6x6 pixels and a 3x3 kernel, each transformed to 6x6 numbers, give a tile of 4x4 pixels by products number by
number, where the plain sum takes 144 products. Over all channels and tiles that is 36 matrix products; so are both
gradients. On a CPU, forward and backward together take a half to two thirds of the plain convolution's time where both
sides have some 50 channels or more; torch's own convolutions have no such path there. Results equal the plain ones up to
rounding (1e-5 of the largest value).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILE, WINDOW = 4, 6
SMALLEST_CHANNELS = 48
# Lavin and Gray's matrices for the points 0, 1, -1, 2, -2 and infinity: of the window, the kernel and the tile.
OF_WINDOW = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
OF_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OF_TILE = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class LearningConvolution(nn.Conv2d):
    """A 3x3 convolution with padding 1, an ordinary one but where it learns on a CPU and `WinogradConvolution` pays."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[n, C_in, H, W] -> [n, C_out, H, W]."""
        weight = self.weight
        if (
            torch.is_grad_enabled()
            and weight.requires_grad
            and min(self.in_channels, self.out_channels) >= SMALLEST_CHANNELS
            and features.shape[2] % TILE == features.shape[3] % TILE == 0
            and features.dtype == weight.dtype == torch.float32
            and features.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        ):
            return WinogradConvolution.apply(features, weight, self.bias)
        return super().forward(features)


class WinogradConvolution(torch.autograd.Function):
    """`functional.conv2d(features, weight, bias, padding=1)` of a 3x3 kernel; the result is channels-last.

    features: [n, C_in, H, W] with H and W multiples of 4; weight: [C_out, C_in, 3, 3]; bias: [C_out].
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, channels_in, height, width = features.shape
        channels_out = len(weight)
        tiles = (count, height // TILE, width // TILE)
        padded = functional.pad(features.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(4, 5, 0, 1, 2, 3)
        points = transformed(OF_WINDOW, windows.reshape(WINDOW, WINDOW, -1)).view(WINDOW**2, -1, channels_in)
        kernels = transformed(OF_KERNEL, weight.permute(2, 3, 0, 1).reshape(3, 3, -1))
        kernels = kernels.view(WINDOW**2, channels_out, channels_in)
        ctx.save_for_backward(points, kernels)
        found = torch.bmm(points, kernels.mT).view(WINDOW, WINDOW, -1)
        found = transformed(OF_TILE, found).view(TILE, TILE, *tiles, channels_out)
        pixels = found.permute(2, 3, 0, 4, 1, 5).reshape(count, height, width, channels_out)
        return pixels.add_(bias).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # type: ignore[override]
        points, kernels = ctx.saved_tensors
        count, channels_out, height, width = gradient.shape
        rows, columns, channels_in = height // TILE, width // TILE, points.shape[2]
        gradient = gradient.permute(0, 2, 3, 1)
        of_tiles = gradient.reshape(count, rows, TILE, columns, TILE, channels_out).permute(2, 4, 0, 1, 3, 5)
        of_found = transformed(OF_TILE, of_tiles.reshape(TILE, TILE, -1), transposed=True)
        of_found = of_found.view(WINDOW**2, -1, channels_out)

        of_kernels = torch.bmm(of_found.mT, points).view(WINDOW, WINDOW, -1)
        of_weight = transformed(OF_KERNEL, of_kernels, transposed=True)
        of_weight = of_weight.view(3, 3, channels_out, channels_in).permute(2, 3, 0, 1)
        of_bias = gradient.sum((0, 1, 2))
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias
        of_points = torch.bmm(of_found, kernels).view(WINDOW, WINDOW, -1)
        of_windows = transformed(OF_WINDOW, of_points, transposed=True)
        pixels = overlapped(of_windows.view(WINDOW, WINDOW, count, rows, columns, channels_in))
        return pixels.permute(0, 3, 1, 2), of_weight, of_bias


def transformed(matrix: tuple[tuple[float, ...], ...], squares: Tensor, transposed: bool = False) -> Tensor:
    """`matrix` (or its transpose) times each of m squares times the matrix transposed: [a, a, m] -> [b, b, m]."""
    factor = torch.tensor(matrix, dtype=squares.dtype)
    factor = factor.T if transposed else factor
    side = len(squares)
    first = torch.mm(factor, squares.reshape(side, -1)).view(len(factor), side, -1)
    return torch.matmul(factor, first)


def overlapped(windows: Tensor) -> Tensor:
    """The pictures [n, H, W, C] whose pixels are the sums of all the places in windows [6, 6, n, H / 4, W / 4, C] that
    see them; what hangs over the edge is left out. Works in `windows`."""
    last = WINDOW - 1
    windows[1, :, :, 1:] += windows[last, :, :, :-1]
    windows[last - 1, :, :, :-1] += windows[0, :, :, 1:]
    rows = windows[1:last]
    rows[:, 1, :, :, 1:] += rows[:, last, :, :, :-1]
    rows[:, last - 1, :, :, :-1] += rows[:, 0, :, :, 1:]
    own = rows[:, 1:last]
    _, _, count, height, width, channels = own.shape
    return own.permute(2, 3, 0, 4, 1, 5).reshape(count, height * TILE, width * TILE, channels)
