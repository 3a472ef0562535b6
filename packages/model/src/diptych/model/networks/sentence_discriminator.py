"""A discriminator of pictures of one size, by themselves and as pictures of their sentences (DM-GAN 3.2; StackGAN++, AttnGAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.model.errors import UserError

LAST_GRID = 4


class SentenceDiscriminator(nn.Module):
    """Pictures of ``size`` pixels per side, and sentences of ``text_width`` numbers, to verdicts."""

    def __init__(self, size: int, channels: int, text_width: int) -> None:
        super().__init__()
        if size < 2 * LAST_GRID or size & (size - 1):
            raise UserError(f"a discriminator takes pictures of a power of two pixels from 8 on, not {size}")
        stages: list[nn.Module] = []
        before = 3
        while size > LAST_GRID:
            after = min(channels * 8, before * 2 if before > 3 else channels)
            stages.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=before == 3))
            if before > 3:
                stages.append(nn.BatchNorm2d(after))
            stages.append(nn.LeakyReLU(0.2))
            size, before = size // 2, after
        self.stages = nn.Sequential(*stages)
        self.alone = nn.Conv2d(before, 1, LAST_GRID)
        self.joint = nn.Sequential(
            nn.Conv2d(before + text_width, before, 3, padding=1, bias=False),
            nn.BatchNorm2d(before),
            nn.LeakyReLU(0.2),
        )
        self.with_sentence = nn.Conv2d(before, 1, LAST_GRID)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures ``[n, 3, S, S]`` in -1..1 to what both verdicts read."""
        return self.stages(pictures.contiguous(memory_format=torch.channels_last))

    def verdicts(self, maps: Tensor) -> Tensor:
        """Of pictures by themselves, ``[n]``: above 0 for real."""
        return self.alone(maps).flatten().float()

    def sentence_verdicts(self, maps: Tensor, sentences: Tensor) -> Tensor:
        """Of pictures as those of their sentences ``[n, D]``: ``[n]``."""
        spread = sentences[:, :, None, None].expand(-1, -1, LAST_GRID, LAST_GRID)
        return self.with_sentence(self.joint(torch.cat([maps, spread], 1))).flatten().float()
