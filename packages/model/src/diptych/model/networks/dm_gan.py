"""DM-GAN's generator (Zhu et al. 2019, section 3): a first small picture from noise and a sentence, then refinement, stage by stage, by
what a memory of the words says to each of its pixels.

Letters in shape comments: n pictures, t words, D their width, C channels of a stage, p pixels, m width of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.networks.config_files import check_fields
from diptych.model.networks.matching import EncodedTexts

FIRST_GRID = 4


@dataclass(frozen=True)
class DMGANConfig:
    """Shape of a :class:`DMGAN`; the paper's in brackets.

    Attributes:
        text_width: D, of words and sentences [256].
        noise: numbers that a picture begins with [100].
        condition: numbers that conditioning augmentation makes of a sentence [100].
        channels: C, of all stages' pictures [64].
        memory: m, of a slot [128].
        first_size: pixels per side of the first stage, 4 times a power of two [64].
        stages: each doubles the size [3].
        residual_blocks: of each refinement [2].
    """

    text_width: int
    noise: int
    condition: int
    channels: int
    memory: int
    first_size: int
    stages: int
    residual_blocks: int

    def __post_init__(self) -> None:
        check_fields(self, "DM-GAN config")
        if FIRST_GRID << self.first_doublings != self.first_size:
            raise UserError(
                f"DM-GAN config: first_size must be {FIRST_GRID} times a power of two, is {self.first_size}"
            )

    @property
    def first_doublings(self) -> int:
        """Doublings from 4x4 to the first picture."""
        return (self.first_size // FIRST_GRID).bit_length() - 1

    @property
    def sizes(self) -> list[int]:
        """Pixels per side of each stage's picture, the smallest first."""
        return [self.first_size << stage for stage in range(self.stages)]


@dataclass(frozen=True)
class GANPaintings:
    """n pictures in all sizes.

    Attributes:
        pictures: ``[n, 3, S, S]`` in -1..1 of each stage, the smallest first.
        mean, log_variance: of the condition's distribution, ``[n, condition]``.
    """

    pictures: list[Tensor]
    mean: Tensor
    log_variance: Tensor


def convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """3x3 without bias, as a norm follows."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


class Doubling(nn.Sequential):
    """[n, C_in, H, W] to [n, C_out, 2 H, 2 W]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2),
            convolution(channels_in, 2 * channels_out),
            nn.BatchNorm2d(2 * channels_out),
            nn.GLU(1),
        )


class ResidualBlock(nn.Module):
    """Convolution, norm, GLU, convolution, norm, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            convolution(channels, 2 * channels),
            nn.BatchNorm2d(2 * channels),
            nn.GLU(1),
            convolution(channels, channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.inner(maps)


class ToPixels(nn.Sequential):
    """Maps to a picture in -1..1."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 3, 3, padding=1), nn.Tanh())


class Condition(nn.Module):
    """Conditioning augmentation (Zhang et al. 2017; equation 1): a sentence to a draw from a distribution around it."""

    def __init__(self, config: DMGANConfig) -> None:
        super().__init__()
        self.distribution = nn.Sequential(nn.Linear(config.text_width, 4 * config.condition), nn.GLU(1))

    def forward(self, sentence: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sentences ``[n, D]`` and standard normal noise ``[n, condition]`` to draws, means and log-variances."""
        mean, log_variance = self.distribution(sentence).chunk(2, 1)
        return mean + (0.5 * log_variance).exp() * noise, mean, log_variance


class FirstStage(nn.Module):
    """Noise and condition to the maps of the first picture (section 3, F_0)."""

    def __init__(self, config: DMGANConfig) -> None:
        super().__init__()
        doublings = config.first_doublings
        self.channels = config.channels << doublings
        size = self.channels * FIRST_GRID**2
        self.start = nn.Sequential(
            nn.Linear(config.noise + config.condition, 2 * size, bias=False),
            nn.BatchNorm1d(2 * size),
            nn.GLU(1),
        )
        widths = [config.channels << stage for stage in reversed(range(doublings))]
        before = [self.channels, *widths]
        self.doublings = nn.Sequential(*(Doubling(a, b) for a, b in zip(before, widths, strict=False)))

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        maps = self.start(torch.cat([condition, noise], 1)).view(-1, self.channels, FIRST_GRID, FIRST_GRID)
        return self.doublings(maps.contiguous(memory_format=torch.channels_last))


class Memory(nn.Module):
    """What the words have to say to each pixel of a picture (section 3.1)."""

    def __init__(self, config: DMGANConfig) -> None:
        super().__init__()
        width, channels, memory = config.text_width, config.channels, config.memory
        self.word_gate, self.picture_gate = nn.Linear(width, 1, bias=False), nn.Linear(channels, 1)
        self.word_slot, self.picture_slot = nn.Linear(width, memory), nn.Linear(channels, memory)
        self.key, self.value = nn.Linear(memory, channels), nn.Linear(memory, channels)
        self.response_gate = nn.Conv2d(2 * channels, 1, 1)

    def forward(self, maps: Tensor, texts: EncodedTexts) -> Tensor:
        """Maps ``[n, C, H, W]`` to maps of the same size."""
        picture = maps.mean((2, 3))[:, None]  # [n, 1, C]
        gate = (
            self.word_gate(texts.words) + self.picture_gate(picture)
        ).sigmoid()  # how much of a word is kept (5)
        slots = gate * self.word_slot(texts.words) + (1 - gate) * self.picture_slot(picture)  # [n, t, m]; (6)
        pixels = maps.flatten(2).mT  # [n, p, C]
        relevance = pixels @ self.key(slots).mT  # [n, p, t]; (7)
        relevance = relevance.masked_fill(~texts.visible[:, None], float("-inf"))
        read = (relevance.softmax(-1) @ self.value(slots)).mT.view_as(maps)  # (8)
        gate = self.response_gate(torch.cat([read, maps], 1)).sigmoid()  # (9)
        return gate * read + (1 - gate) * maps  # (10)


class Refinement(nn.Module):
    """Maps of one stage to those of the next, twice the size."""

    def __init__(self, config: DMGANConfig) -> None:
        super().__init__()
        self.memory = Memory(config)
        self.blocks = nn.Sequential(*(ResidualBlock(config.channels) for _ in range(config.residual_blocks)))
        self.doubling = Doubling(config.channels, config.channels)

    def forward(self, maps: Tensor, texts: EncodedTexts) -> Tensor:
        return self.doubling(self.blocks(self.memory(maps, texts)))


class DMGAN(nn.Module):
    """Texts and noise to pictures, small and then larger."""

    def __init__(self, config: DMGANConfig) -> None:
        super().__init__()
        self.config = config
        self.condition = Condition(config)
        self.first = FirstStage(config)
        self.refinements = nn.ModuleList(Refinement(config) for _ in range(config.stages - 1))
        self.to_pixels = nn.ModuleList(ToPixels(config.channels) for _ in range(config.stages))

    def forward(self, texts: EncodedTexts, noise: Tensor) -> GANPaintings:
        """``noise``: standard normal ``[n, noise + condition]``."""
        start, of_condition = noise.split([self.config.noise, self.config.condition], 1)
        condition, mean, log_variance = self.condition(texts.sentence, of_condition)
        maps = self.first(condition, start)
        pictures = [self.to_pixels[0](maps)]
        for refinement, to_pixels in zip(self.refinements, list(self.to_pixels)[1:], strict=True):
            maps = refinement(maps, texts)
            pictures.append(to_pixels(maps))
        return GANPaintings(pictures, mean, log_variance)
