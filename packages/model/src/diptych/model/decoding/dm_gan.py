"""Paintings by DM-GAN: pixels from a text and noise, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.model.decoding.noise import normal_noise, sample_seeds
from diptych.model.decoding.paint import texts_to_paint
from diptych.model.devices import Texts
from diptych.model.errors import UserError
from diptych.model.networks.dm_gan import DMGAN
from diptych.model.networks.matching import TextEncoder
from diptych.model.tokenizer import CaptionTokenizer


@torch.no_grad()
def paint_pixels(
    generator: DMGAN,
    encoder: TextEncoder,
    tokenizer: CaptionTokenizer,
    ids: Tensor | Texts,
    seeds: Sequence[int],
    samples: int = 1,
) -> Tensor:
    """Paint captions int64 ``[n, t]`` of ``tokenizer.encode``: pixels float ``[n * samples, 3, S, S]`` in -1..1, ``samples`` pictures of
    each caption side by side.

    Args:
        seeds: one whole number >= 0 per caption; the same seed gives a caption the same pictures in every batch.

    Raises:
        UserError: there is no caption, or one has no word. Both networks should be in eval mode.
    """
    # On the CPU, where the encoder asks for lengths, too: a GPU is asked once.
    ids = texts_to_paint(tokenizer, ids).ids.cpu()
    words = ~torch.isin(ids, torch.tensor([tokenizer.pad, tokenizer.cls, tokenizer.sep]))
    if not words.any(1).all():
        raise UserError("a caption has no word to paint")
    texts = encoder(ids, tokenizer)
    if samples > 1:
        texts = texts.rows(torch.arange(len(ids), device=texts.sentence.device).repeat_interleave(samples))
    config = generator.config
    noise = normal_noise(sample_seeds(seeds, samples), config.noise + config.condition, texts.sentence.device)
    return generator(texts, noise).pictures[-1].float()
