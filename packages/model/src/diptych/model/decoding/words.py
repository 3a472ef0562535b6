"""Which words may come next: those that likelihood, repetition and a prefix leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.tokenizer import CaptionTokenizer


def start_pieces(tokenizer: CaptionTokenizer, start: str) -> tuple[int, ...]:
    """Return the word pieces of the words that texts are to start with, such as "A" or "What" (X-LXMERT 7.3).

    Args:
        start: the words; empty for none.

    Raises:
        UserError: a word has characters that the tokenizer does not know, or has or is a full stop.
    """
    texts = start.split()
    words: list[int] = []
    for word, pieces in zip(texts, tokenizer.pieces(texts), strict=True):
        if not pieces or tokenizer.unk in pieces or tokenizer.stop in pieces:
            raise UserError(
                f"start: {word!r} is no word that the tokenizer knows, or holds the full stop that ends captions; "
                "leave it out"
            )
        words += pieces
    return tuple(words)


def start_words(tokenizer: CaptionTokenizer, start: str, length: int) -> tuple[int, ...]:
    """Return the :func:`start_pieces` of captions.

    Args:
        start: the words; empty for none.
        length: tokens in a row, as in :func:`diptych.model.decoding.caption.write_captions`.

    Raises:
        UserError: as there, or no room is left for one more word and a full stop.
    """
    words = start_pieces(tokenizer, start)
    if words and len(words) > length - 4:
        raise UserError(
            f"start: {start!r} has {len(words)} word pieces, captions of length {length} have room for at most "
            f"{max(0, length - 4)} before what is written; shorten it or raise length"
        )
    return words


def is_among_largest(values: Tensor, k: int) -> Tensor:
    """Return bool ``[..., C]``, true at exactly min(k, C) of the largest values; of equal ones, at the first."""
    if k >= values.shape[-1]:
        return torch.ones_like(values, dtype=torch.bool)
    least = values.topk(k).values[..., -1:]
    larger, equal = values > least, values == least
    return larger | (equal & (equal.cumsum(-1) <= k - larger.sum(-1, keepdim=True)))


def without_repeats(ids: Tensor, log_probabilities: Tensor, size: int) -> Tensor:
    """Exclude the words that would write a sequence of ``size`` words a second time.

    Args:
        ids: int64 ``[n, t]``, the captions so far.
        log_probabilities: float ``[n, V]``.

    Returns:
        float ``[n, V]``, minus infinity at excluded words, otherwise as given.
    """
    if ids.shape[1] < size:
        return log_probabilities
    windows = ids.unfold(1, size, 1)  # [n, t - size + 1, size]
    newest = ids[:, ids.shape[1] - size + 1 :]
    repeats = (windows[..., :-1] == newest[:, None]).all(-1)
    # how often each word is excluded: nothing that has to be counted first
    excluded = torch.zeros_like(log_probabilities, dtype=torch.int32)
    excluded.scatter_add_(1, windows[..., -1], repeats.int())
    return log_probabilities.masked_fill(excluded > 0, -torch.inf)


def likeliest(log_probabilities: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """Exclude unlikely words; the likeliest always stays.

    Args:
        log_probabilities: float ``[n, V]``.
        top_k: words that stay, the likeliest; None: all. Of equally likely ones those with the lower ids.
        top_p: then the fewest words that together have this share of the probability, likeliest first (Holtzman et al.
            2020); 1: all.

    Returns:
        float ``[n, V]``, minus infinity at excluded words, otherwise as given.
    """
    if top_k is not None:
        log_probabilities = log_probabilities.masked_fill(
            ~is_among_largest(log_probabilities, top_k), -torch.inf
        )
    if top_p < 1:
        ordered, order = log_probabilities.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.double().softmax(-1)
        likelier = probabilities.cumsum(-1) - probabilities  # of the words before
        excluded = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, likelier >= top_p)
        log_probabilities = log_probabilities.masked_fill(excluded, -torch.inf)
    return log_probabilities


@dataclass(frozen=True)
class WordFilters:
    """The filters of one decoding, in the order in which they apply (a
    :class:`diptych.model.decoding.caption.WordFilter`).

    Attributes:
        no_repeat: size of the word sequences that may not occur twice; 0: all may.
        top_k, top_p: as in :func:`likeliest`.
    """

    no_repeat: int = 0
    top_k: int | None = None
    top_p: float = 1.0

    def __call__(self, ids: Tensor, log_probabilities: Tensor) -> Tensor:
        if self.no_repeat:
            log_probabilities = without_repeats(ids, log_probabilities, self.no_repeat)
        return likeliest(log_probabilities, self.top_k, self.top_p)
