"""The discriminator: tells real from painted pictures and reads the codes of their cells (X-LXMERT D.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from diptych.model.errors import UserError
from diptych.model.networks.image_generator import GRID_SIZE, LEAKY_SLOPE, normalise


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Widths; the number of blocks follows from the picture's size.

    channels: of the blocks' outputs (paper: 64).
    first_channels: of the first block's output; it doubles from block to block up to `channels`. The first
        blocks see the largest maps, where channels cost most (paper: 64, the same everywhere).
    grid_blocks: blocks at 8x8 after the last halving (0 in the paper's text, which then has its 0.5M
        parameters at 256x256; 1 in the released code).
    instance_norm: after each block's first convolution (paper: true). It takes away how strong a texture is, so
        that without it artefacts are found sooner.
    spectral_norm: on every convolution but the code head's (paper: true). It keeps the verdicts of a game of some
        hundred steps near zero, in which nobody wins or learns.
    """

    channels: int
    first_channels: int
    grid_blocks: int = 0
    instance_norm: bool = True
    spectral_norm: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.first_channels <= self.channels:
            raise UserError(
                f"discriminator: first_channels must be from 1 to channels ({self.channels}), "
                f"is {self.first_channels}"
            )
        if self.grid_blocks < 0:
            raise UserError(f"discriminator: grid_blocks must be at least 0, is {self.grid_blocks}")


class HalvingConvolution(nn.Conv2d):
    """A 3x3 convolution and the mean of every 2x2 pixels of its output, in one.

    The mean of four shifted 3x3 kernels is one 4x4 kernel with stride 2: the same result for 4/9 of the work.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[n, C_in, H, W] -> [n, C_out, H / 2, W / 2]."""
        kernel = functional.avg_pool2d(self.weight, 2, stride=1, padding=1, count_include_pad=True)
        return functional.conv2d(features, kernel, self.bias, stride=2, padding=1)


class DiscriminatorBlock(nn.Module):
    """Activation, convolution, instance norm, activation, convolution, mean of 2x2; plus a 1x1 shortcut.

    The shortcut is not normalised: instance norm would erase colours.
    """

    def __init__(
        self, config: DiscriminatorConfig, channels_in: int, channels_out: int, first: bool, halve: bool
    ) -> None:
        super().__init__()
        self.first, self.halve, self.norm = first, halve, config.instance_norm
        normalised = _weight_normalisation(config)
        self.convolution1 = normalised(nn.Conv2d(channels_in, channels_out, 3, padding=1))
        second = HalvingConvolution if halve else _same_size
        self.convolution2 = normalised(second(channels_out, channels_out))
        self.shortcut = normalised(nn.Conv2d(channels_in, channels_out, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[n, C_in, H, W] -> [n, C_out, H / 2, W / 2], or [n, C_out, H, W] where it does not halve."""
        if not self.first:  # the first one sees pixels
            features = functional.leaky_relu(features, LEAKY_SLOPE)
        hidden = self.convolution1(features)
        if self.norm:
            hidden = normalise(hidden)
        hidden = self.convolution2(functional.leaky_relu(hidden, LEAKY_SLOPE))
        # A mean and a 1x1 convolution commute; this order costs a quarter.
        return hidden + self.shortcut(functional.avg_pool2d(features, 2) if self.halve else features)


def _weight_normalisation(config: DiscriminatorConfig) -> Callable[[nn.Module], nn.Module]:
    return spectral_norm if config.spectral_norm else lambda layer: layer


def _same_size(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


@dataclass(frozen=True)
class Judgement:
    """What the discriminator says about n pictures.

    verdicts: [n], above 0 for real, below for painted.
    code_logits: float [n, 64, K], of each cell's code, row-major from the top left; None without a codebook.
    features: the output of every block [n, C, h, w], the largest first.
    """

    verdicts: Tensor
    code_logits: Tensor | None
    features: list[Tensor]


class Discriminator(nn.Module):
    """[n, 3, S, S] pixels in -1..1 to verdicts, codes and feature maps (X-LXMERT D.2, figure 9).

    Both heads read the last block's 8x8 map. The adversarial head averages a score per cell. The code head
    (AC-GAN, Odena et al. 2017) projects each cell to the space of the codebook and compares it with the
    codebook's vectors, which stay as they are; so its size hardly depends on K, as the paper's count of 0.5M
    parameters requires (64 x 10,000 weights alone would be more).

    codebook: float [K, D]; stored normalised, so that the codes' logits start near zero. None: there is no code head.
    image_size: S, 8 times a power of two; log2(S / 8) blocks halve it.
    """

    codebook: Tensor | None

    def __init__(self, config: DiscriminatorConfig, image_size: int, codebook: Tensor | None) -> None:
        super().__init__()
        halvings = int(math.log2(image_size // GRID_SIZE))
        if GRID_SIZE * 2**halvings != image_size or halvings < 1:
            raise UserError(f"discriminator: image_size must be {GRID_SIZE} times a power of two, from 16 on")
        widths = [min(config.channels, config.first_channels * 2**block) for block in range(halvings)]
        widths += [config.channels] * config.grid_blocks
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(config, before, after, first=block == 0, halve=block < halvings)
            for block, (before, after) in enumerate(zip([3, *widths], widths, strict=False))
        )
        self.verdict = _weight_normalisation(config)(nn.Conv2d(widths[-1], 1, 3, padding=1))
        if codebook is None:
            self.codebook = None
            return
        classes, feature_dim = codebook.shape
        self.projection = nn.Conv2d(widths[-1], feature_dim, 1)
        self.code_bias = nn.Parameter(torch.zeros(classes))
        centred = codebook.float() - codebook.float().mean(0)
        scale = centred.square().mean().sqrt().clamp(min=1e-6) * math.sqrt(feature_dim)
        self.register_buffer("codebook", centred / scale)

    def forward(self, images: Tensor) -> Judgement:
        """images: float [n, 3, S, S] in -1..1."""
        features, maps = images, []
        for block in self.blocks:
            features = block(features)
            maps.append(features)
        last = functional.leaky_relu(features, LEAKY_SLOPE)
        logits = None
        if self.codebook is not None:
            projected = self.projection(last).flatten(2).mT  # [n, 64, D]
            logits = functional.linear(projected, self.codebook, self.code_bias).float()
        return Judgement(self.verdict(last).float().mean(dim=(1, 2, 3)), logits, maps)
