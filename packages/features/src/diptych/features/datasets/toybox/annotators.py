"""People who answer questions about Toybox: mostly in the usual word, sometimes in another one, rarely wrongly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What people also say for an answer. VQA's normalisation makes one of "2" and "two", none of "sea" and "water".
OTHERWISE: dict[str, tuple[str, ...]] = {
    "0": ("zero", "none"),
    "1": ("one",),
    "2": ("two",),
    "3": ("three",),
    "4": ("four",),
    "5": ("five",),
    "boat": ("ship",),
    "house": ("home",),
    "purple": ("violet",),
    "desert": ("sand",),
    "field": ("grass",),
    "night": ("dark",),
    "sea": ("water", "ocean"),
    "snow": ("winter",),
    "top left": ("upper left",),
    "top middle": ("top",),
    "top right": ("upper right",),
    "bottom left": ("lower left",),
    "bottom middle": ("bottom",),
    "bottom right": ("lower right",),
}


def annotate(
    truth: str, possible: Sequence[str], number: int, otherwise: float, wrong: float, rng: np.random.Generator
) -> list[str]:
    """`number` people's answers to a question whose answer is `truth`.

    otherwise: share of the right answers in another word than the usual one, where there is one; wrong: share of
    the answers that are another one of `possible`.
    """
    answers = []
    words, errors = OTHERWISE.get(truth, ()), [answer for answer in possible if answer != truth]
    for chance, choice in zip(rng.random(number), rng.random(number), strict=True):
        if errors and chance < wrong:
            answers.append(errors[int(choice * len(errors))])
        elif words and chance < wrong + (1 - wrong) * otherwise:
            answers.append(words[int(choice * len(words))])
        else:
            answers.append(truth)
    return answers
