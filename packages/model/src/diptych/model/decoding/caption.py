"""Captions, word by word with a key/value cache: greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.decoding.noise import sample_from, uniform_noise
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.transformer import UnifiedTransformer


@dataclass(frozen=True)
class Captions:
    """Decoded captions.

    Attributes:
        ids: int64 ``[n, length]``, ``[CLS] words . [SEP] [PAD] ...``; without a full stop if cut at the length.
        log_probabilities: float32 ``[n, length]``, of each written word given the words before it, under the
            distribution it was taken from; 0 at special tokens.
    """

    ids: Tensor
    log_probabilities: Tensor


def word_log_probabilities(logits: Tensor, tokenizer: CaptionTokenizer, temperature: float = 1.0) -> Tensor:
    """Return the decoder's distribution, float32 ``[..., V]``: softmax(logits / temperature) without special
    tokens."""
    allowed = logits.float().index_fill(-1, tokenizer.forbidden.to(logits.device), float("-inf"))
    return (allowed / temperature).log_softmax(-1)


@torch.no_grad()
def decode_captions(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    prefix: list[Tensor],
    length: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> Captions:
    """Write one caption per image.

    Args:
        prefix: from ``model.encode_visual_prefix(grid features [n, 64, D])``.
        length: tokens in a row, ``[CLS]`` and ``[SEP]`` included (17 in UMT 5.1).
        temperature: 0 takes the likeliest word (greedy), above 0 samples from softmax(logits / temperature).
        seeds: one whole number >= 0 per image, needed for sampling; the same seed gives an image the same caption
            in every batch.

    A row is done at its full stop; done rows leave the batch. The model should be in eval mode.
    """
    if temperature > 0 and (seeds is None or len(seeds) != len(prefix[0])):
        raise ValueError("sampling needs one seed per image")
    n, device = len(prefix[0]), prefix[0].device
    ids = torch.full((n, length), tokenizer.pad, device=device)
    ids[:, 0] = tokenizer.cls
    log_probabilities = torch.zeros(n, length, device=device)
    noise = uniform_noise(seeds or [], length, device=device) if temperature > 0 else None
    keys_values = model.visual_keys_values(prefix)
    caches = model.caption_caches(length - 2)
    rows = torch.arange(n, device=device)  # the captions that are still being written
    for position in range(1, length - 1):
        states = model.caption_states(ids[rows, position - 1, None], keys_values, caches)[:, 0]
        choices = word_log_probabilities(model.word_logits(states), tokenizer, temperature or 1.0)
        words = choices.argmax(-1) if noise is None else sample_from(choices, noise[rows, position])
        ids[rows, position] = words
        log_probabilities[rows, position] = choices.gather(-1, words[:, None])[:, 0]
        ids[rows, position + 1] = tokenizer.sep  # overwritten unless this was the last word
        open_rows = (words != tokenizer.stop).nonzero()[:, 0]
        if len(open_rows) == 0:
            break
        if len(open_rows) < len(rows):
            rows = rows[open_rows]
            keys_values = [(keys[open_rows], values[open_rows]) for keys, values in keys_values]
            for cache in caches:
                cache.keep(open_rows)
    return Captions(ids, log_probabilities)
