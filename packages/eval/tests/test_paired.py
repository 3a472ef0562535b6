"""Paired differences cover the truth as often as they say, and verdicts follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.eval.paired import (
    Difference,
    all_of,
    better,
    not_worse,
    picture_difference,
    seed_difference,
    seed_values,
)


def systems(generator, seeds: int, seed_effect: float, pictures: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Two systems that differ by 0.3 for all pictures and trainings there are, [seeds, pictures, 1] each."""
    base = generator.normal(size=(seeds, pictures, 1))
    own = generator.normal(0, seed_effect, (seeds, 1, 1)) + generator.normal(0, 1, (1, pictures, 1))
    return base + 0.3 + own, base


@pytest.mark.parametrize(("seeds", "effect", "least"), [(3, 0.0, 0.89), (3, 0.1, 0.89), (8, 0.5, 0.82)])
def test_the_interval_over_pictures_covers_the_truth(seeds: int, effect: float, least: float) -> None:
    generator = np.random.default_rng(5)
    covered = widths = 0.0
    for trial in range(100):
        found = picture_difference(*systems(generator, seeds, effect), seed=trial, resamples=150)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.3 <= found.high
        widths += found.high - found.low
    assert covered / 100 >= least
    # not by being wide: 2 x 1.96 standard errors and a quarter
    error = np.sqrt(1 / 50 + effect**2 / seeds)
    assert widths / 100 < 1.25 * 2 * 1.96 * error


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
    assert seed_values(row).tolist() == [2.0, 2.0]
    found = picture_difference(row, base)
    assert found.value == 2 and found.low == pytest.approx(2)


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
