"""Texts of a pretrained model by Gibbs sampling, from their first words (X-LXMERT 7.3, figure 5; Wang and Cho 2019).

Pretraining never writes from left to right: it predicts words that are hidden anywhere in a sentence. So a text starts as its first
words and a row of [MASK], and its other places are visited in random order, again and again: each time the word there is hidden,
predicted from all others and the picture, and drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diptych.model.decoding.caption import encode_images, word_log_probabilities
from diptych.model.decoding.noise import derived_seed, sample_from, uniform_noise
from diptych.model.decoding.words import start_pieces
from diptych.model.devices import sent
from diptych.model.errors import UserError
from diptych.model.networks.unified import UnifiedTransformer, at_positions
from diptych.model.tokenizer import CaptionTokenizer


@torch.no_grad()
def gibbs_texts(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    start: str,
    words: int,
    seeds: Sequence[int],
    sweeps: int = 4,
    temperature: float = 1.0,
) -> Tensor:
    """Write one text for each of n images: int64 ``[n, words + 2]``, ``[CLS] words [SEP]``.

    Args:
        features: float ``[n, cells, D]`` (:func:`diptych.model.image_features.caption_input`); the model reads them with a text
            as it reads them with a question, by the attention that its config names.
        start: the first words, such as "A" or "What", which stay.
        words: word pieces of a text, its start and its last mark included.
        seeds: one whole number >= 0 per image; the same seed gives an image the same text in every batch.
        sweeps: how often each place is visited.
        temperature: words are drawn from softmax(logits / temperature); above 0. In the last sweep the likeliest is taken.

    Raises:
        UserError: there is no image, ``start`` leaves no room or is not in the vocabulary, or a number is out of range.
    """
    n, device = len(features), features.device
    if n == 0:
        raise UserError("there is no image to write about")
    if len(seeds) != n:
        raise ValueError("sampling needs one seed per text")
    if words < 1 or sweeps < 1:
        raise UserError(f"words and sweeps must be at least 1, are {words} and {sweeps}")
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature must be a finite number above 0, is {temperature}")
    given = start_pieces(tokenizer, start)
    if len(given) >= words:
        raise UserError(
            f"start: {start!r} has {len(given)} word pieces, a text of {words} has room for at most {words - 1}; shorten it or "
            "raise words"
        )
    free = range(1 + len(given), 1 + words)
    predict = hidden_words_of(model, features)
    ids = torch.full((n, words + 2), tokenizer.mask, device=device)
    ids[:, 0], ids[:, -1] = tokenizer.cls, tokenizer.sep
    ids[:, 1 : 1 + len(given)] = sent(torch.tensor(given, dtype=ids.dtype), device)
    noise = uniform_noise(seeds, sweeps, len(free), device=device)
    orders = sent(
        torch.stack([places(seed, free, sweeps) for seed in seeds]), device
    )  # [n, sweeps, free places]
    for sweep in range(sweeps):
        for visit in range(len(free)):
            position = orders[:, sweep, visit, None]
            ids.scatter_(1, position, tokenizer.mask)
            chances = word_log_probabilities(predict(ids, position[:, 0]), tokenizer, temperature)
            last = sweep == sweeps - 1
            drawn = chances.argmax(-1) if last else sample_from(chances, noise[:, sweep, visit])
            ids.scatter_(1, position, drawn[:, None])
    return ids


def hidden_words_of(model: UnifiedTransformer, features: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What maps texts int64 ``[n, t]`` and a place of each, int64 ``[n]``, to logits ``[n, V]`` of the word there, from all its
    others and its image. What of the images follows from no text is computed here."""
    images = encode_images(model, features)
    if model.config.caption_attention == "prefix":
        keys_values = model.visual_keys_values(images)

        def by_prefix(ids: Tensor, position: Tensor) -> Tensor:
            states = model.all_question_states(ids, None, keys_values)
            return model.word_logits(at_positions(states, position[:, None])[:, 0])

        return by_prefix
    projection = model.visual_projection(images[0])
    return lambda ids, position: model.masked_caption_logits(ids, None, images[0], position, projection)


def places(seed: int, free: range, sweeps: int) -> Tensor:
    """The places of a text in several random orders, int64 ``[sweeps, free places]``."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "words"))
    orders = [torch.randperm(len(free), generator=generator) for _ in range(sweeps)]
    return torch.stack(orders) + free.start
