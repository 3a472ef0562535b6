"""The Frechet distance against its formula with scipy's matrix root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diptych.eval.errors import UserError
from diptych.eval.images.frechet import frechet_distance


@pytest.mark.parametrize(("count", "other", "width"), [(50, 70, 6), (200, 200, 32), (10, 12, 9)])
def test_is_the_formula(count: int, other: int, width: int) -> None:
    random = np.random.default_rng(count)
    first = random.normal(size=(count, width)) @ random.normal(size=(width, width))
    second = random.normal(size=(other, width)) @ random.normal(size=(width, width)) + 0.3
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(
        expected, rel=1e-8
    )


def test_of_equal_sets_of_shifted_ones_and_of_fewer_rows_than_columns() -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)
    assert frechet_distance(rows, rows * 2) == pytest.approx(
        float(rows.mean(0).square().sum() + rows.var(0).sum()), rel=1e-5
    )
    few = rows[:5]
    assert frechet_distance(few, few + 1.0) == pytest.approx(8.0, rel=1e-6)


def test_bad_features_are_named() -> None:
    rows = torch.randn(4, 3)
    for other in (torch.randn(4, 2), torch.randn(1, 3), torch.randn(3)):
        with pytest.raises(UserError, match="needs two rows"):
            frechet_distance(rows, other)
    with pytest.raises(UserError, match="finite"):
        frechet_distance(rows, rows.clone().fill_(torch.nan))
