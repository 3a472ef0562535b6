"""How long, how varied and how new captions are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from diptych.eval.figures import RESAMPLES, Figure, mean_figure, ratio_figure

Words = Sequence[str]
_LONGEST_REPETITION = 3  # words


def statistics_figures(
    captions: Sequence[Words],
    seed: int,
    training: Iterable[Words] | None = None,
    resamples: int = RESAMPLES,
    **facts: Any,
) -> list[Figure]:
    """Figures of a set of captions, one per picture, each a sequence of words.

    length_mean, length_deviation (words), vocabulary (different words), unique (share of different captions),
    div_1 and div_2 (different words, and pairs of neighbours, by all words: Shetty et al. 2017, here over the whole
    set), repeated_words (:func:`repeated`, by all words), and with `training` novel (share of captions that are word by
    word no training caption). The counts of different things have no interval: a resample repeats captions
    and so has fewer of them.
    """
    lengths = np.array([len(words) for words in captions], np.float64)
    total = max(1.0, float(lengths.sum()))
    single = {word for words in captions for word in words}
    pairs = {pair for words in captions for pair in pairwise(words)}

    def counted(name: str, value: float) -> Figure:
        return Figure(name, value, len(captions), **facts)

    repetitions = np.array([[repeated(words), len(words)] for words in captions], np.float64)
    figures = [
        mean_figure("length_mean", lengths, seed, resamples, **facts),
        counted("length_deviation", float(lengths.std())),
        counted("vocabulary", float(len(single))),
        counted("unique", len({tuple(words) for words in captions}) / len(captions)),
        counted("div_1", len(single) / total),
        counted("div_2", len(pairs) / total),
        ratio_figure(
            "repeated_words",
            repetitions,
            lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-9),
            seed,
            resamples,
            **facts,
        ),
    ]
    if training is not None:
        known = {tuple(words) for words in training}
        new = [tuple(words) not in known for words in captions]
        figures.append(mean_figure("novel", new, seed, resamples, **facts))
    return figures


def repeated(words: Words) -> int:
    """Words that say again what stands directly before them, one to three words at a time.

    "a red red kite" has one, "a dog with a dog with" three.
    """
    again: set[int] = set()
    for size in range(1, _LONGEST_REPETITION + 1):
        for start in range(size, len(words) - size + 1):
            if list(words[start : start + size]) == list(words[start - size : start]):
                again.update(range(start, start + size))
    return len(again)
