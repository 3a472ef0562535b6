"""Captions, word by word, greedy or sampled, by either attention scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diptych.model.decoding.decisions import PAPER, Decisions
from diptych.model.decoding.noise import sample_from, uniform_noise
from diptych.model.devices import sent
from diptych.model.networks.attention import KeyValueCache
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer


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


def word_log_probabilities(
    logits: Tensor,
    tokenizer: CaptionTokenizer,
    temperature: float | Tensor = 1.0,
    decisions: Decisions = PAPER,
) -> Tensor:
    """Return the decoder's distribution, float32 ``[..., V]``: softmax(logits / temperature), by default without
    special tokens. ``temperature`` is above 0; a tensor broadcasts to the logits."""
    logits = logits.float()
    if not decisions.special_words:
        logits = logits.index_fill(-1, tokenizer.forbidden_on(logits.device), float("-inf"))
    return (logits / temperature).log_softmax(-1)


class NextWord(Protocol):
    """What writes captions: one object for one batch of images, asked for one word after the other."""

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits ``[n, V]`` of the word after ``ids`` int64 ``[n, t]``, which start with [CLS]: at the first
        call of any length, later those of the call before with one word more."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only (int64 ``[m]``; any order, repeats allowed). They are best on the CPU: a GPU has to
        be asked for them."""


class WordFilter(Protocol):
    """What excludes words (:class:`diptych.model.decoding.words.WordFilters`)."""

    def __call__(self, ids: Tensor, log_probabilities: Tensor) -> Tensor:
        """Return ``log_probabilities`` float ``[n, V]`` of the word after ``ids`` int64 ``[n, t]``, minus infinity at
        excluded words."""


class CachedNextWord:
    """What writes captions word by word where only the newest word runs through the network: the others are in ``caches``, and
    of each image the ``keys_values`` that all its captions read, a pair ``[images, heads, cells, d]`` for each layer.

    As long as there are equally many captions of every image, side by side, they share its keys and values.
    """

    def __init__(self, keys_values: list[tuple[Tensor, Tensor]], caches: list[KeyValueCache]) -> None:
        self.keys_values, self.caches = keys_values, caches
        self.images = len(keys_values[0][0])
        self.captions_per_image = 1

    def newest(self, ids: Tensor) -> Tensor:
        """The words that are not in the caches yet."""
        return ids[:, self.caches[0].length :]

    def keep(self, rows: Tensor) -> None:
        """As :meth:`NextWord.keep`."""
        device = self.keys_values[0][0].device
        images = rows.cpu() // self.captions_per_image
        neighbours, counts = images.unique_consecutive(return_counts=True)
        if (counts == counts[0]).all():
            images = neighbours
        self.captions_per_image = len(rows) // len(images)
        if len(images) != self.images or (images != torch.arange(self.images)).any():
            kept = sent(images, device)
            self.keys_values = [(keys[kept], values[kept]) for keys, values in self.keys_values]
            self.images = len(images)
        rows = sent(rows, device)
        for cache in self.caches:
            cache.keep(rows)


class PrefixNextWord(CachedNextWord):
    """The ``prefix`` scheme.

    ``prefix`` is from ``model.encode_visual_prefix(features [n, 64, D])``; ``length`` as in
    :func:`write_captions`.
    """

    def __init__(self, model: UnifiedTransformer, prefix: list[Tensor], length: int) -> None:
        super().__init__(model.visual_keys_values(prefix), model.caption_caches(length - 2))
        self.model = model

    def logits(self, ids: Tensor) -> Tensor:
        states = self.model.caption_states(self.newest(ids), self.keys_values, self.caches)
        return self.model.word_logits(states[:, -1])


class MaskedNextWord:
    """The papers' ``masked`` scheme: a [MASK] follows the words so far, and every word is a new forward pass; only the
    visual states that no word has reached are kept.

    ``visual`` is from ``model.encode_visual(grid features [n, 64, D])``.
    """

    def __init__(self, model: UnifiedTransformer, visual: Tensor, mask: int) -> None:
        self.model = model
        self.mask = mask
        self.visual = visual
        self.visual_projection = model.visual_projection(visual)
        self.images = torch.arange(visual.shape[0])  # of each row

    def logits(self, ids: Tensor) -> Tensor:
        masks = ids.new_full((ids.shape[0], 1), self.mask)
        positions = ids.new_full((ids.shape[0],), ids.shape[1])
        return self.model.masked_caption_logits(
            torch.cat([ids, masks], 1), None, self.visual, positions, self.visual_projection
        )

    def keep(self, rows: Tensor) -> None:
        images = self.images[rows.cpu()]
        if not images.equal(self.images):
            rows = sent(rows, self.visual.device)
            self.visual = self.visual[rows]
            self.visual_projection = tuple(part[rows] for part in self.visual_projection)
            self.images = images


def encode_images(model: UnifiedTransformer, features: Tensor) -> list[Tensor]:
    """Encode features float ``[n, 64, D]`` (:func:`diptych.model.image_features.caption_input`) for captioning by the
    attention that the model's config names: the visual states ``[n, 64, h]`` that every word reads (``prefix``: one for each layer in which text sees the image)."""
    if model.config.caption_attention == "prefix":
        return model.encode_visual_prefix(features)
    return [model.encode_visual(features)]


def next_word_of(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], length: int
) -> NextWord:
    """Start captions of ``images`` (:func:`encode_images`); ``length`` as in :func:`write_captions`."""
    if model.config.caption_attention == "prefix":
        return PrefixNextWord(model, images, length)
    return MaskedNextWord(model, images[0], tokenizer.mask)


@torch.no_grad()
def write_captions(
    next_word: NextWord,
    tokenizer: CaptionTokenizer,
    n: int,
    length: int,
    device: torch.device | str,
    temperature: float | Sequence[float] = 0.0,
    seeds: Sequence[int] | None = None,
    decisions: Decisions = PAPER,
    start: Sequence[int] = (),
    filter_words: WordFilter | None = None,
) -> Captions:
    """Write n captions, one for each row of ``next_word``.

    Args:
        length: tokens in a row, ``[CLS]`` and ``[SEP]`` included (UMT 5.1: 17 tokens; the released code counts [CLS] among them).
        temperature: 0 takes the likeliest word (greedy), above 0 samples from softmax(logits / temperature); one for
            all captions, or one each.
        seeds: one whole number >= 0 per caption, needed if any is sampled; the same seed gives an image the same
            caption in every batch.
        start: the words that all captions start with (:func:`diptych.model.decoding.words.start_words`); as nobody
            chose them, their log-probabilities are 0.
        filter_words: what it excludes is never written. Sampling takes from what it leaves and the log-probabilities
            are those of that distribution; greedy, they are the model's.

    A row is done at its full stop; done rows leave the batch. The model should be in eval mode.
    """
    device = torch.device(device)
    temperatures = torch.as_tensor(temperature, dtype=torch.float32).expand(n)
    greedy = temperatures == 0
    sampling = not bool(greedy.all())
    if sampling and (seeds is None or len(seeds) != n):
        raise ValueError("sampling needs one seed per caption")
    temperatures = sent(temperatures.masked_fill(greedy, 1.0)[:, None], device)
    greedy = sent(greedy, device)
    ids = torch.full((n, length), tokenizer.pad, device=device)
    ids[:, : len(start) + 1] = sent(torch.tensor([tokenizer.cls, *start]), device)
    log_probabilities = torch.zeros(n, length, device=device)
    noise = uniform_noise(seeds or [], length, device=device) if sampling else None
    rows = torch.arange(n, device=device)  # the captions that are still being written
    for position in range(len(start) + 1, length - 1):
        written = ids[rows, :position]
        choices = word_log_probabilities(next_word.logits(written), tokenizer, temperatures[rows], decisions)
        if filter_words is not None:
            left = filter_words(written, choices)
            choices = torch.where(greedy[rows, None], left, left.log_softmax(-1))
        words = choices.argmax(-1)
        if noise is not None:
            drawn = sample_from(choices, noise[rows, position])
            words = torch.where(greedy[rows], words, drawn)
        ids[rows, position] = words
        log_probabilities[rows, position] = choices.gather(-1, words[:, None])[:, 0]
        ids[rows, position + 1] = tokenizer.sep  # overwritten unless this was the last word
        # the one look at the device for each word, without which done captions would be written to the end
        open_rows = (words != tokenizer.stop).cpu().nonzero()[:, 0]
        if len(open_rows) == 0:
            break
        if len(open_rows) < len(rows):
            rows = rows[sent(open_rows, device)]
            next_word.keep(open_rows)
    return Captions(ids, log_probabilities)


@torch.no_grad()
def decode_captions(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    images: list[Tensor],
    length: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    decisions: Decisions = PAPER,
) -> Captions:
    """Write one caption for each of ``images`` (:func:`encode_images`); the rest as in :func:`write_captions`."""
    next_word = next_word_of(model, tokenizer, images, length)
    count, device = len(images[0]), images[0].device
    return write_captions(next_word, tokenizer, count, length, device, temperature, seeds, decisions)
