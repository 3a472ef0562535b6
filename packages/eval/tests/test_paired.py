"""Paired differences cover the truth as often as they say, and verdicts follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from diptych.eval.comparisons.paired import (
    Difference,
    all_of,
    better,
    not_worse,
    picture_difference,
    seed_difference,
)

TRUE = 0.3


def systems(generator, seeds: int, seed_effect: float, pictures: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Two systems that differ by TRUE for all pictures and trainings there are, [seeds, pictures, 1] each."""
    base = generator.normal(size=(seeds, pictures, 1))
    trainings, own = generator.normal(0, seed_effect, (seeds, 1, 1)), generator.normal(0, 1, (1, pictures, 1))
    return base + TRUE + trainings + own + generator.normal(0, 0.5, base.shape), base


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.86), (3, 0.90), (5, 0.92), (8, 0.92)])
@pytest.mark.parametrize("effect", [0.0, 0.1, 0.5, 5.0])
def test_the_interval_over_seeds_and_pictures_covers_the_truth(
    seeds: int, least: float, effect: float
) -> None:
    """Whether pictures decide, seeds do, or both."""
    generator = np.random.default_rng(5)
    found = [picture_difference(*systems(generator, seeds, effect)) for _ in range(600)]
    assert np.mean([each.low <= TRUE <= each.high for each in found if each.low and each.high]) >= least


@pytest.mark.parametrize(
    ("seeds", "effect", "quantile"), [(5, 0.0, student.ppf(0.975, 49)), (5, 5.0, student.ppf(0.975, 4))]
)
def test_the_interval_is_no_wider_than_it_has_to_be(seeds: int, effect: float, quantile: float) -> None:
    """Student's over pictures where these decide, and over seeds where those do."""
    generator = np.random.default_rng(7)
    found = [picture_difference(*systems(generator, seeds, effect)) for _ in range(300)]
    width = np.mean(
        [each.high - each.low for each in found if each.low is not None and each.high is not None]
    )
    error = np.sqrt(1 / 50 + effect**2 / seeds + 0.25 / (50 * seeds))
    assert width == pytest.approx(2 * quantile * error, rel=0.1)


def test_the_interval_over_seeds_covers_the_truth() -> None:
    generator = np.random.default_rng(3)
    rows = generator.normal(0.3, 0.2, (1000, 3))
    found = [seed_difference(row, [0.0] * 3) for row in rows]
    covered = np.mean([each.low <= 0.3 <= each.high for each in found if each.low and each.high])
    assert 0.93 <= covered <= 0.97


def test_pairs_are_of_seeds_and_pictures() -> None:
    """A constant gain has no spread, however much seeds and pictures vary; unpaired it would drown."""
    base = np.random.default_rng(0).normal(0, 10, (3, 40, 1))
    found = picture_difference(base + 1, base)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert picture_difference(base[:1] + 1, base[:1]).low is None
    assert seed_difference([2.0], [1.0]) == Difference(1.0, None, None)


def test_parts_count_equally_and_missing_ones_not_at_all() -> None:
    base = np.zeros((2, 4, 2))
    base[:, 1:, 1] = np.nan
    row = base + np.array([1.0, 3.0])
    assert picture_difference(row, base) == Difference(2.0, 2.0, 2.0)


def test_parts_of_the_same_pictures_are_their_mean() -> None:
    """Where no part is missing, a figure of parts is the figure of the pictures' means."""
    row, base = systems(np.random.default_rng(1), 3, 0.3)
    parts = np.random.default_rng(2).normal(size=(*row.shape[:2], 4))
    parts -= parts.mean(-1, keepdims=True)
    whole, split = picture_difference(row, base), picture_difference(row + parts, base)
    assert (split.value, split.low, split.high) == pytest.approx((whole.value, whole.low, whole.high))


def test_a_part_that_few_pictures_have_widens_the_interval() -> None:
    row, base = systems(np.random.default_rng(1), 3, 0.0)
    row, base = np.repeat(row, 2, -1), np.repeat(base, 2, -1)
    every = picture_difference(row, base)
    row[:, 10:, 1] = np.nan
    few = picture_difference(row, base)
    assert few.high - few.low > 1.3 * (every.high - every.low)


@pytest.mark.parametrize(
    ("low", "high", "margin", "wanted"),
    [
        (-0.01, 0.5, 0.02, "holds"), (-0.5, -0.03, 0.02, "fails"), (-0.05, 0.5, 0.02, "undecided"), (None, None, 1.0, "undecided")
    ],
)  # fmt: skip
def test_not_worse(low, high, margin: float, wanted: str) -> None:
    assert not_worse(Difference(0.0, low, high), margin) == wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.01, 1, "holds"), (-1, -0.01, "fails"), (-0.1, 1, "undecided"), (None, None, "undecided")],
)
def test_better(low, high, wanted: str) -> None:
    difference = Difference(0.0, low, high)
    assert better(difference) == wanted
    opposite = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    assert better(-difference) == opposite[wanted]


def test_a_claim_is_its_comparisons() -> None:
    assert all_of(["holds", "holds"]) == "holds"
    assert all_of(["holds", "undecided"]) == all_of([]) == "undecided"
    assert all_of(["holds", "undecided", "fails"]) == "fails"
