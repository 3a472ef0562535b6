"""The reference side of the image generator: X-LXMERT's network, every step where the paper puts it.

Spectral norm through torch's hooks, divided out again in every pass; scale and shift of every adaptive norm by their
own convolutions at full resolution; the map upsampled anew for each norm. Written from the behaviour of the released
generator (https://github.com/allenai/x-lxmert, image_generator), whose state-dict names it has, so that its state dict
is a checkpoint of theirs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from diptych.model.networks.image_generator import ImageGeneratorConfig


def enlarge(features: Tensor, side: int) -> Tensor:
    return F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)


class AdaptiveNorm(nn.Module):
    def __init__(self, channels: int, map_channels: int, hidden: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(map_channels, hidden, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, features: Tensor, semantics: Tensor) -> Tensor:
        hidden = self.shared(enlarge(semantics, features.shape[-1]))
        return F.instance_norm(features) * (1 + self.gamma(hidden)) + self.beta(hidden)


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, noise: bool) -> Tensor:
        if not noise:
            return features
        return features + self.weight * torch.randn_like(features[:, :1])


class Block(nn.Module):
    def __init__(self, before: int, after: int, map_channels: int, hidden: int) -> None:
        super().__init__()
        self.cbn1 = AdaptiveNorm(before, map_channels, hidden)
        self.conv1 = spectral_norm(nn.Conv2d(before, after, 3, padding=1))
        self.noise1 = Noise()
        self.cbn2 = AdaptiveNorm(after, map_channels, hidden)
        self.conv2 = spectral_norm(nn.Conv2d(after, after, 3, padding=1))
        self.noise2 = Noise()
        self.res_branch = nn.Sequential(nn.Identity(), spectral_norm(nn.Conv2d(before, after, 1)))

    def forward(self, features: Tensor, semantics: Tensor, noise: bool) -> Tensor:
        side = features.shape[-1] * 2
        path = F.leaky_relu(self.noise1(self.cbn1(features, semantics), noise), 0.2)
        path = self.conv1(enlarge(path, side))
        path = F.leaky_relu(self.noise2(self.cbn2(path, semantics), noise), 0.2)
        return self.conv2(path) + self.res_branch(enlarge(features, side))


class ToRGB(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)


class ReferenceImageGenerator(nn.Module):
    """Random weights of torch's own start; ``config`` is of the paper's kind (bilinear, modulated per block)."""

    def __init__(self, config: ImageGeneratorConfig) -> None:
        super().__init__()
        self.side = config.image_size
        width, first = config.bottleneck_channels, config.block_channels[0]
        self.bottleneck_emb = nn.Sequential(nn.Conv2d(config.feature_dim, width, 1), nn.Tanh())
        groups, map_channels = config.stem_groups, config.modulation_channels
        self.learned_init_conv = nn.Sequential(
            spectral_norm(nn.Conv2d(width, first, 3, padding=1, groups=groups))
        )
        self.style_init_conv = nn.Sequential(
            spectral_norm(nn.Conv2d(width, map_channels, 3, padding=1, groups=groups))
        )
        pairs = list(zip(config.block_channels, config.block_channels[1:], strict=False))
        self.resblocks = nn.ModuleList(
            Block(before, after, map_channels, config.modulation_hidden) for before, after in pairs
        )
        self.to_RGB_blocks = nn.ModuleList(ToRGB(after) for _, after in pairs)

    def forward(self, grid: Tensor, noise: bool = False) -> Tensor:
        """grid ``[n, 64, D]`` -> ``[n, 3, S, S]``; ``noise`` as the released code has it while it trains and paints."""
        semantics = self.bottleneck_emb(grid.transpose(1, 2).reshape(len(grid), -1, 8, 8))
        features, semantics = self.learned_init_conv(semantics), self.style_init_conv(semantics)
        picture = grid.new_zeros(len(grid), 3, self.side, self.side)
        for block, to_rgb in zip(self.resblocks, self.to_RGB_blocks, strict=True):
            features = block(features, semantics, noise)
            picture = picture + enlarge(to_rgb.conv(features), self.side)
        return torch.tanh(picture)
