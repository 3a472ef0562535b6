"""CIDEr-D (Vedantam et al. 2015) in numpy, on words or on token ids.

The value is that of pycocoevalcap's `Cider` (n-grams up to 4, sigma 6, times 10), but fast enough to reward
every step of sequence-level training. An n-gram is one integer of four times 16 bits, or, where there are more words than
16 bits tell apart, 16 bytes of four times 32 bits; the references are one sorted array of (picture, n-gram) pairs. So
everything is a search or a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

import numpy as np

from diptych.eval.errors import UserError

ORDERS = 4
SIGMA = 6.0
_BITS = 16
_MAX_NARROW_TOKEN = 2**_BITS - 2
_MAX_TOKEN = 2**32 - 2
_SAYS_NOTHING = (
    "words count by how few pictures have them in a reference, and here all pictures have the same; "
    "measure two pictures or more that differ"
)
_WIDE = np.dtype("S16")  # big-endian, so that both forms are in the same order


class _Grams:
    """Every distinct n-gram of every caption: which caption, which n-gram, which order, how often.

    All arrays are parallel, sorted by caption and n-gram; `gram` is uint64, or S16 where a token needs more than 16 bits.
    `bigrams` [captions] is CIDEr-D's length.
    """

    def __init__(self, captions: Sequence[Sequence[int]]) -> None:
        lengths = np.fromiter((len(caption) for caption in captions), np.int64, len(captions))
        tokens = np.fromiter(chain.from_iterable(captions), np.int64, int(lengths.sum()))
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= _MAX_TOKEN:
            raise UserError(
                f"CIDEr-D: token ids must be from 0 to {_MAX_TOKEN}, got {tokens.min()} to {tokens.max()}"
            )
        owner = np.repeat(np.arange(len(captions)), lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))  # tokens to the caption's end
        grams, owners = [], []
        for order, gram in enumerate(_windows(tokens + 1), 1):
            whole = left[: len(gram)] >= order
            grams.append(gram[whole])
            owners.append(owner[: len(gram)][whole])
        all_grams, all_owners = np.concatenate(grams), np.concatenate(owners)
        order_of = np.repeat(np.arange(ORDERS), [len(part) for part in grams])
        sorting = np.lexsort((all_grams, all_owners))
        all_grams, all_owners, order_of = all_grams[sorting], all_owners[sorting], order_of[sorting]
        first = np.ones(len(all_grams), bool)
        first[1:] = (all_grams[1:] != all_grams[:-1]) | (all_owners[1:] != all_owners[:-1])
        starts = np.flatnonzero(first)
        self.caption, self.gram, self.order = all_owners[starts], all_grams[starts], order_of[starts]
        self.count = np.diff(np.append(starts, len(all_grams)))
        self.bigrams = np.maximum(lengths - 1, 0)


def _windows(numbers: np.ndarray) -> list[np.ndarray]:
    """Every 1, 2, 3 and 4 neighbours of numbers int64 [n] from 1 on, as n-grams [n], [n - 1], ..."""
    narrow = numbers.astype(np.uint64)
    if not len(numbers) or numbers.max() <= _MAX_NARROW_TOKEN + 1:
        windows = [narrow]
        for order in range(2, ORDERS + 1):
            windows.append((windows[-1][:-1] << np.uint64(_BITS)) | narrow[order - 1 :])
        return windows
    windows = []
    for order in range(1, ORDERS + 1):
        count = max(0, len(numbers) - order + 1)
        fields = np.zeros((count, ORDERS), ">u4")
        for place in range(order):
            fields[:, ORDERS - order + place] = numbers[place : place + count]
        windows.append(_of_fields(fields))
    return windows


def _of_fields(fields: np.ndarray) -> np.ndarray:
    """Wide n-grams [n] of their numbers >u4 [n, 4]."""
    return np.ascontiguousarray(fields).view(_WIDE).reshape(len(fields))


def _in_one_form(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both n-grams narrow, or both wide; each keeps its order."""
    if first.dtype == second.dtype:
        return first, second
    return _wide(first), _wide(second)


def _wide(grams: np.ndarray) -> np.ndarray:
    if grams.dtype == _WIDE:
        return grams
    shifts = np.arange(ORDERS - 1, -1, -1, dtype=np.uint64) * np.uint64(_BITS)
    fields = (grams[:, None] >> shifts) & np.uint64(2**_BITS - 1)
    return _of_fields(fields.astype(">u4"))


class CiderDReward:
    """CIDEr-D of token ids against a training corpus, the reward of SCST (UMT section 4.1.2).

    `references[i]` are the captions of picture i as token ids (0 to 2**32 - 2), without special tokens
    unless the candidates have them too. Memory: about 40 bytes per distinct n-gram and caption; with ids from 65,535 on
    about 48, and some time more.

    `document_frequencies`: "corpus" takes them from all these references, as the metric means them. "batch" takes
    them from the references of the pictures of one call of `reward`, as generate-it does; a picture that is scored
    twice counts twice.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        document_frequencies: Literal["corpus", "batch"] = "corpus",
    ) -> None:
        if document_frequencies not in ("corpus", "batch"):
            raise UserError(f"document_frequencies must be corpus or batch, is {document_frequencies!r}")
        self._batches = references if document_frequencies == "batch" else None
        captions = _flatten(references)
        picture_of = np.repeat(np.arange(len(references)), [len(several) for several in references])
        grams = _Grams(captions)
        pairs = np.lexsort((grams.gram, picture_of[grams.caption]))
        gram, picture = grams.gram[pairs], picture_of[grams.caption][pairs]
        new = np.ones(len(gram), bool)
        new[1:] = (gram[1:] != gram[:-1]) | (picture[1:] != picture[:-1])
        self._known, documents = np.unique(gram[new], return_counts=True)
        self._log_pictures = np.log(float(len(references)))
        self._weights = self._log_pictures - np.log(documents)
        self._references = _References(references, self, grams)

    def weight(self, grams: np.ndarray) -> np.ndarray:
        """Inverse document frequency float64 [n] of n-grams [n]; unseen ones count as seen once."""
        if not len(self._known):
            return np.full(len(grams), self._log_pictures)
        known, grams = _in_one_form(self._known, grams)
        place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        return np.where(known[place] == grams, self._weights[place], self._log_pictures)

    @property
    def tells_apart(self) -> bool:
        """Whether any n-gram of the references has a weight. One that every picture has weighs nothing, so with a single
        picture all values are 0, the perfect caption's too."""
        return bool((self._weights > 0).any())

    def reward(self, image_indices: Sequence[int], candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """CIDEr-D float32 [n] of candidate i against the corpus's references of picture image_indices[i]."""
        if self._batches is not None:
            batch = CiderDReward([self._batches[index] for index in image_indices])
            return batch.reward(range(len(image_indices)), candidates)
        return self._references.scores(np.asarray(image_indices, np.int64), candidates).astype(np.float32)


class _References:
    """The tf-idf vectors of references, kept for every candidate that is compared with them."""

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[int]]],
        frequency: CiderDReward,
        grams: _Grams | None = None,
    ) -> None:
        self._frequency = frequency
        sizes = np.array([len(several) for several in references])
        picture_of = np.repeat(np.arange(len(references)), sizes)
        grams = grams or _Grams(_flatten(references))
        weight = grams.count * frequency.weight(grams.gram)
        self._norms = _norms(grams, weight, len(picture_of))  # [references, orders]
        self._bigrams, self._sizes = grams.bigrams, sizes
        self._vocabulary, rank = np.unique(grams.gram, return_inverse=True)
        key = picture_of[grams.caption] * len(self._vocabulary) + rank
        sorting = np.argsort(key, kind="stable")
        self._keys, self._weights, self._owners = key[sorting], weight[sorting], grams.caption[sorting]

    def scores(self, pictures: np.ndarray, candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """CIDEr-D float64 [n]; candidate i against the references of picture pictures[i]."""
        if len(pictures) != len(candidates):
            raise ValueError(f"{len(pictures)} pictures for {len(candidates)} candidates")
        grams = _Grams(candidates)
        weight = grams.count * self._frequency.weight(grams.gram)
        norms = _norms(grams, weight, len(candidates))

        # Candidate n-grams that some reference of the same picture holds too: the pairs of the product.
        vocabulary, gram = _in_one_form(self._vocabulary, grams.gram)
        rank = np.minimum(np.searchsorted(vocabulary, gram), max(len(vocabulary) - 1, 0))
        known = np.flatnonzero(vocabulary[rank] == gram) if len(vocabulary) else rank[:0]
        key = pictures[grams.caption[known]] * len(vocabulary) + rank[known]
        low, high = np.searchsorted(self._keys, key), np.searchsorted(self._keys, key, side="right")
        repeats = high - low
        entry = np.repeat(known, repeats)
        match = np.repeat(low - np.cumsum(repeats) + repeats, repeats) + np.arange(len(entry))

        # Pairs of candidate i and its reference j, numbered one after the other.
        sizes = self._sizes[pictures]
        starts = np.cumsum(sizes) - sizes
        first_reference = np.cumsum(self._sizes) - self._sizes
        candidate = np.repeat(np.arange(len(candidates)), sizes)
        reference = np.arange(len(candidate)) - starts[candidate] + first_reference[pictures][candidate]
        owner = grams.caption[entry]
        pair = starts[owner] + self._owners[match] - first_reference[pictures[owner]]

        product = np.minimum(weight[entry], self._weights[match]) * self._weights[match]
        dots = np.bincount(pair * ORDERS + grams.order[entry], product, len(candidate) * ORDERS)
        lengths = norms[candidate] * self._norms[reference]
        cosine = np.divide(dots.reshape(-1, ORDERS), lengths, out=np.zeros_like(lengths), where=lengths != 0)
        delta = grams.bigrams[candidate] - self._bigrams[reference]
        similarity = cosine.mean(1) * np.exp(-(delta**2) / (2 * SIGMA**2))
        return 10 * np.bincount(candidate, similarity, len(candidates)) / sizes


def _norms(grams: _Grams, weight: np.ndarray, captions: int) -> np.ndarray:
    squares = np.bincount(grams.caption * ORDERS + grams.order, weight**2, captions * ORDERS)
    return np.sqrt(squares).reshape(captions, ORDERS)


def _flatten(references: Sequence[Sequence[Sequence[int]]]) -> list[Sequence[int]]:
    if not references:
        raise UserError("CIDEr-D: there are no references; give at least one picture with captions")
    for number, several in enumerate(references):
        if not several:
            raise UserError(f"CIDEr-D: picture {number} has no reference caption; give each at least one")
    return list(chain.from_iterable(references))


class CiderD:
    """CIDEr-D of words: document frequencies from `corpus`, whose item i are picture i's captions as words.

    missing: why no value says anything, where the corpus does not tell its pictures apart (all values are 0 then, the
    perfect caption's too); None otherwise.
    """

    def __init__(self, corpus: Sequence[Sequence[Sequence[str]]]) -> None:
        self._numbers: dict[str, int] = {}
        self._corpus = CiderDReward([self._ids(several) for several in corpus])
        self.missing = None if self._corpus.tells_apart else _SAYS_NOTHING

    def score(
        self, candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]] | None = None
    ) -> tuple[float, np.ndarray]:
        """Mean and single values float64 [n]; candidate i against references[i], or the corpus's item i."""
        ids = self._ids(candidates)
        if references is None:
            compared = self._corpus._references
        else:
            compared = _References([self._ids(several) for several in references], self._corpus)
        if len(candidates) != len(compared._sizes):
            raise UserError(f"CIDEr-D: {len(candidates)} candidates for {len(compared._sizes)} pictures")
        values = compared.scores(np.arange(len(candidates)), ids)
        return float(values.mean()), values

    def _ids(self, captions: Sequence[Sequence[str]]) -> list[list[int]]:
        numbers = self._numbers
        return [[numbers.setdefault(word, len(numbers)) for word in caption] for caption in captions]
