"""The pair of encoders that a text-to-image GAN is taught by (AttnGAN's DAMSM, Xu et al. 2018, section 3.2; DM-GAN 3.3): a bidirectional
LSTM over words and a CNN over pictures, into one space.

AttnGAN's CNN is an Inception trained on ImageNet of which only the last projections learn; ours is small and learns altogether.

Letters in shape comments: n texts or pictures, t words, r regions, D width of the common space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from diptych.model.devices import sent
from diptych.model.errors import UserError
from diptych.model.tokenizer import CaptionTokenizer

REGIONS_PER_SIDE = 8


@dataclass(frozen=True)
class MatchingConfig:
    """Shape of both encoders; AttnGAN's in brackets.

    Attributes:
        vocab_size: words.
        word_width: of a word's embedding [300].
        width: D, of the common space; even [256].
        dropout: of words' embeddings [0.5].
        image_size: S, 8 times a power of two: pixels per side that the CNN sees [299].
        channels: of the CNN's first stage; they double at each halving, four times at most.
    """

    vocab_size: int
    word_width: int
    width: int
    dropout: float
    image_size: int
    channels: int

    def __post_init__(self) -> None:
        for name in ("vocab_size", "word_width", "width", "image_size", "channels"):
            if getattr(self, name) < 1:
                raise UserError(f"matching: {name} must be at least 1, is {getattr(self, name)}")
        if self.width % 2:
            raise UserError(f"matching: width must be even, is {self.width}")
        if self.halvings < 1 or REGIONS_PER_SIDE << self.halvings != self.image_size:
            raise UserError(
                f"matching: image_size must be {REGIONS_PER_SIDE} times a power of two, from 16 on, is {self.image_size}"
            )

    @property
    def halvings(self) -> int:
        """Stages of the CNN, from pixels to 8x8 regions."""
        return (self.image_size // REGIONS_PER_SIDE).bit_length() - 1


@dataclass(frozen=True)
class EncodedTexts:
    """n texts.

    Attributes:
        words: ``[n, t, D]``.
        visible: bool ``[n, t]``, which of them are words.
        sentence: ``[n, D]``.
    """

    words: Tensor
    visible: Tensor
    sentence: Tensor

    def rows(self, rows: Tensor) -> EncodedTexts:
        """Some of them."""
        return EncodedTexts(self.words[rows], self.visible[rows], self.sentence[rows])


class TextEncoder(nn.Module):
    """Words to what each means in its sentence, and the sentence."""

    def __init__(self, config: MatchingConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.word_width)
        self.lstm = nn.LSTM(config.word_width, config.width // 2, batch_first=True, bidirectional=True)
        self.dropout = config.dropout

    def forward(self, ids: Tensor, tokenizer: CaptionTokenizer) -> EncodedTexts:
        """ids: int64 ``[n, t + 1]`` of ``tokenizer.encode``; [CLS] and [SEP] are no words. They are best on the CPU, where their
        lengths are needed: a GPU has to be asked for them."""
        device, ids = self.embedding.weight.device, ids[:, 1:].cpu()
        visible = (ids != tokenizer.pad) & (ids != tokenizer.sep)
        # sorted here, because torch would wait for a GPU to take the order
        lengths, order = visible.sum(1).clamp(min=1).sort(descending=True)
        longest = int(lengths[0])
        ids, visible, order, back = (
            sent(part, device) for part in (ids[:, :longest], visible[:, :longest], order, order.argsort())
        )
        embedded = F.dropout(self.embedding(ids), self.dropout, self.training)
        packed = pack_padded_sequence(embedded.index_select(0, order), lengths, batch_first=True)
        states, (last, _) = self.lstm(packed)
        words, _ = pad_packed_sequence(states, batch_first=True)
        sentence = last.index_select(1, back).transpose(0, 1).flatten(1)
        return EncodedTexts(words.index_select(0, back), visible, sentence)


class PictureEncoder(nn.Module):
    """Pictures to what their regions show, and the picture."""

    def __init__(self, config: MatchingConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 3
        for stage in range(config.halvings):
            after = config.channels << min(stage, 4)
            stages += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        self.size = config.image_size
        self.stages = nn.Sequential(*stages)
        self.regions = nn.Conv2d(before, config.width, 1, bias=False)
        self.picture = nn.Linear(before, config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``[n, 3, S, S]`` in -1..1 to regions ``[n, r, D]`` (row-major) and pictures ``[n, D]``."""
        maps = self.stages(pixels.contiguous(memory_format=torch.channels_last))
        return self.regions(maps).flatten(2).mT, self.picture(maps.mean((2, 3)))
