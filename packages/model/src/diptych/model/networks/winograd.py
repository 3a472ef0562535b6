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

from diptych.model.devices import on_cpu

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
# The point (1, 1) of 6x6: what stands there adds to every pixel of the tile, as a bias does.
ALL_PIXELS = WINDOW + 1


class LearningConvolution(nn.Conv2d):
    """A 3x3 convolution with padding 1, an ordinary one but where it learns on a CPU and `WinogradConvolution` pays.

    shuffle: its result goes through `functional.pixel_shuffle(..., 2)`.
    """

    def __init__(self, channels_in: int, channels_out: int, groups: int = 1, shuffle: bool = False) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, groups=groups)
        self.shuffle = shuffle

    def forward(self, features: Tensor) -> Tensor:
        """[n, C_in, H, W] -> [n, C_out, H, W], or [n, C_out / 4, 2H, 2W] where it shuffles."""
        weight = self.weight
        if (
            torch.is_grad_enabled()
            and weight.requires_grad
            and self.groups == 1
            and min(self.in_channels, self.out_channels) >= SMALLEST_CHANNELS
            and features.shape[2] % TILE == features.shape[3] % TILE == 0
            and features.dtype == weight.dtype == torch.float32
            and on_cpu(features)
            and not torch.is_autocast_enabled("cpu")
        ):
            return WinogradConvolution.apply(features, weight, self.bias, 2 if self.shuffle else 1)
        result = super().forward(features)
        return functional.pixel_shuffle(result, 2) if self.shuffle else result


class WinogradConvolution(torch.autograd.Function):
    """`functional.pixel_shuffle(functional.conv2d(features, weight, bias, padding=1), factor)` of a 3x3 kernel.

    features: [n, C_in, H, W] with H and W multiples of 4; weight: [C_out, C_in, 3, 3]; bias: [C_out]; factor: 1 leaves
    the pixels where they are. The result is channels-last. Its pixels are put in their places once, shuffled or not.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, factor: int) -> Tensor:
        count, channels_in, height, width = features.shape
        rows, columns, channels_out = height // TILE, width // TILE, len(weight)
        padded = functional.pad(features.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(4, 5, 0, 1, 2, 3)
        points = transformed(OF_WINDOW, windows.reshape(WINDOW, WINDOW, -1)).view(WINDOW**2, -1, channels_in)
        # channels that pixel shuffle takes apart become [place in the cell, channel], so that channels stay together
        kernels = weight.view(-1, factor**2, channels_in, 3, 3).permute(3, 4, 1, 0, 2).reshape(3, 3, -1)
        kernels = transformed(OF_KERNEL, kernels).view(WINDOW**2, channels_out, channels_in)
        ctx.save_for_backward(points, kernels)
        ctx.factor = factor
        found = torch.bmm(points, kernels.mT)
        found[ALL_PIXELS] += bias.view(-1, factor**2).T.reshape(-1)
        found = transformed(OF_TILE, found.view(WINDOW, WINDOW, -1))
        found = found.view(TILE, TILE, count, rows, columns, factor, factor, -1)
        pixels = found.permute(2, 3, 0, 5, 4, 1, 6, 7).reshape(count, height * factor, width * factor, -1)
        return pixels.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # type: ignore[override]
        (points, kernels), factor = ctx.saved_tensors, ctx.factor
        count, _, height, width = gradient.shape
        rows, columns = height // factor // TILE, width // factor // TILE
        channels_out, channels_in = kernels.shape[1:]
        of_tiles = gradient.permute(0, 2, 3, 1).reshape(count, rows, TILE, factor, columns, TILE, factor, -1)
        of_tiles = of_tiles.permute(2, 5, 0, 1, 4, 3, 6, 7).reshape(TILE, TILE, -1)
        of_found = transformed(OF_TILE, of_tiles, transposed=True).view(WINDOW**2, -1, channels_out)

        of_kernels = torch.bmm(of_found.mT, points).view(WINDOW, WINDOW, -1)
        of_weight = transformed(OF_KERNEL, of_kernels, transposed=True)
        of_weight = of_weight.view(3, 3, factor**2, -1, channels_in).permute(3, 2, 0, 1, 4)
        of_weight = of_weight.reshape(channels_out, 3, 3, channels_in).permute(0, 3, 1, 2)
        of_bias = of_found[ALL_PIXELS].sum(0).view(factor**2, -1).T.reshape(-1)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, None
        of_points = torch.bmm(of_found, kernels).view(WINDOW, WINDOW, -1)
        of_windows = transformed(OF_WINDOW, of_points, transposed=True)
        pixels = overlapped(of_windows.view(WINDOW, WINDOW, count, rows, columns, channels_in))
        return pixels.permute(0, 3, 1, 2), of_weight, of_bias, None


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
