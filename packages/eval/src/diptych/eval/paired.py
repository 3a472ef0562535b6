"""Two systems on the same pictures and seeds: differences with their intervals, and verdicts on claims about them.

What a few seeds can say. A difference is between trainings, so the sample is that of seeds; pictures only tell how well
each training's mean is known. With three seeds the spread between trainings is estimated from two degrees of freedom:

* :func:`picture_difference` resamples seeds, then pictures. Where pictures vary much and seeds little, its interval covers
  the truth in 95% of cases. Where pictures add next to nothing to the seeds' own effect, three seeds cover it in 83%, eight
  in 90% (measured on normal effects): three values show less than half of the range that trainings have. An interval
  that excludes zero then says that the seeds agree by more than their pictures' noise, not that the next one must.
* :func:`seed_difference` is for figures of a whole set (BLEU, Frechet distances), which have no value per picture: Student's
  interval over seeds, about these pictures. Its coverage is right for normal effects, and with three seeds it is wide: 2.5
  standard deviations of the difference to either side.
* One seed has no interval, and every claim about it stays undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diptych.eval.figures import interval

Verdict = Literal["holds", "fails", "undecided"]
# Student's t at 97.5% by degrees of freedom
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95% interval; None where there are too few seeds for one."""

    value: float
    low: float | None
    high: float | None

    def __neg__(self) -> Difference:
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Difference(-self.value, low, high)


def seed_values(pictures: np.ndarray) -> np.ndarray:
    """The figure of each seed, float64 [seeds], of the values of single pictures [seeds, pictures, parts]: the mean over
    parts of the mean over the pictures that have the part (the others are NaN)."""
    return np.nanmean(pictures, axis=1).mean(-1)


def picture_difference(row: np.ndarray, base: np.ndarray, seed: int = 0, resamples: int = 2000) -> Difference:
    """The mean difference row - base of a figure that is a mean over pictures, by a hierarchical bootstrap: seeds are drawn
    with repetition, then pictures, the same ones for all drawn seeds and for both systems.

    The deviations of seeds from their mean are enlarged by sqrt(n / (n - 1)), because a bootstrap of n values spreads that
    much too little. See the module for what the interval can say.

    Args:
        row, base: float64 [seeds, pictures, parts] as of :func:`seed_values`; seed i and picture j are the same in both, and
            they lack the same parts.
        seed: of the drawings.
    """
    seeds, pictures, _ = row.shape
    missing = np.isnan(row) | np.isnan(base)
    differences = np.where(missing, 0.0, row - base)
    counted = ~missing
    value = float((differences.sum(1) / counted.sum(1)).mean())
    if seeds < 2:
        return Difference(value, None, None)
    generator = np.random.default_rng((seed, seeds, pictures))
    enlarged = math.sqrt(seeds / (seeds - 1))
    drawn = np.empty(resamples)
    for number in range(resamples):
        weights = np.bincount(generator.integers(0, pictures, pictures), minlength=pictures)
        counts = np.einsum("p,spk->sk", weights, counted)
        # a part that no drawn picture has keeps its value
        sums = np.einsum("p,spk->sk", weights, differences)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), differences.sum(1) / counted.sum(1)).mean(
            -1
        )
        chosen = means[generator.integers(0, seeds, seeds)]
        drawn[number] = means.mean() + enlarged * (chosen.mean() - means.mean())
    return Difference(value, *interval(drawn))


def seed_difference(row: Sequence[float], base: Sequence[float]) -> Difference:
    """The mean difference row - base of figures of the same seeds, with Student's interval over seeds."""
    differences = np.asarray(row, np.float64) - np.asarray(base, np.float64)
    count = len(differences)
    value = float(differences.mean())
    if count < 2:
        return Difference(value, None, None)
    student = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96 + 2.4 / (count - 1)
    half = student * float(differences.std(ddof=1)) / math.sqrt(count)
    return Difference(value, value - half, value + half)


def not_worse(difference: Difference, margin: float) -> Verdict:
    """Whether something is at most `margin` (in the difference's own unit) worse. difference: positive is better.

    It holds when the whole interval is above -margin, fails when the whole interval is below it.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low > -margin:
        return "holds"
    return "fails" if difference.high < -margin else "undecided"


def better(difference: Difference) -> Verdict:
    """Whether something is better: it holds when the whole interval is above zero, fails when it is below."""
    return not_worse(difference, 0.0)


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """What several comparisons say together: a claim holds when all hold and fails when one fails."""
    if "fails" in verdicts:
        return "fails"
    return "holds" if verdicts and set(verdicts) == {"holds"} else "undecided"
