from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from diptych.eval.errors import UserError
from diptych.eval.images.retrieval import (
    fold_deviation,
    hard_wins,
    r_precision,
    r_precision_wins,
    random_negatives,
)
from diptych.eval.scorers.clip_score import clip_scores
from diptych.eval.words import Swapped


def noisy_pairs(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 12, generator=generator)
    texts = images + noise * torch.randn(count, 12, generator=generator)
    return normalize(images, dim=-1), normalize(texts, dim=-1)


def test_r_precision_equals_brute_force() -> None:
    images, texts = noisy_pairs(40, 0.9)
    wins = np.zeros(40)
    for fold in range(4):
        negatives = random_negatives(40, 9, seed=5, fold=fold)
        for image in range(40):
            assert image not in negatives[image] and len(set(negatives[image])) == 9
            own = float(images[image] @ texts[image])
            wins[image] += all(own > float(images[image] @ texts[other]) for other in negatives[image]) / 4
    np.testing.assert_allclose(r_precision_wins(images, texts, seed=5, negatives=9, drawings=4), wins)
    mean, deviation = r_precision(images, texts, seed=5, negatives=9, folds=4)
    assert mean == pytest.approx(wins.mean()) and 0.3 < mean < 1
    assert deviation == pytest.approx(fold_deviation(wins, 5, 4)) and 0 < deviation < 0.3


def test_r_precision_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = noisy_pairs(60, 0.9)
    whole = r_precision_wins(images, texts, seed=0, negatives=20, drawings=3)
    monkeypatch.setattr("diptych.eval.images.retrieval._CHUNK", 7 * 60)
    np.testing.assert_array_equal(r_precision_wins(images, texts, seed=0, negatives=20, drawings=3), whole)


def test_deviation_is_that_of_random_parts() -> None:
    wins = np.random.default_rng(0).integers(0, 2, 30_000).astype(float)
    # the standard error of a tenth of the pictures
    assert fold_deviation(wins, seed=0) == pytest.approx(np.sqrt(0.25 / 3000), rel=0.6)
    assert fold_deviation(np.ones(50), seed=0) == 0


def test_hard_wins_equal_brute_force() -> None:
    images, texts = noisy_pairs(30, 0.9)
    wrong, _ = noisy_pairs(70, 0)
    swapped, expected, start = [], [], 0
    for index, negatives in ((3, 9), (4, 5), (17, 9), (29, 1), (8, 40)):
        swapped.append(Swapped(index, "word", ("",) * negatives))
        own = float(images[index] @ texts[index])
        expected.append(all(own > float(images[index] @ wrong[start + n]) for n in range(negatives)))
        start += negatives
    np.testing.assert_array_equal(hard_wins(images, texts, swapped, wrong), np.array(expected, float))
    assert 0 < sum(expected) < len(expected)
    # a wrong caption with the very same embedding shares the win
    assert hard_wins(images, texts, [Swapped(2, "word", ("",))], texts[2:3]) == [0.5]


def test_r_precision_of_perfect_constant_and_random_embeddings() -> None:
    images, _ = noisy_pairs(150, 0)
    assert r_precision(images, images, seed=0) == (1.0, 0.0)
    same = images[:1].expand(150, -1)
    assert r_precision(same, same, seed=0)[0] == pytest.approx(0.01)
    mean, _ = r_precision(images, images.roll(1, 0), seed=0)
    assert mean < 0.05
    assert r_precision(images, images.roll(1, 0), seed=1) != r_precision(images, images.roll(1, 0), seed=2)


def test_negatives_are_uniform_over_other_pictures() -> None:
    drawn = np.concatenate([random_negatives(20, 5, seed=0, fold=fold)[7] for fold in range(400)])
    counts = np.bincount(drawn, minlength=20)
    assert counts[7] == 0 and counts.sum() == 2000
    others = np.delete(counts, 7)
    assert others.min() > 60 and others.max() < 160


def test_too_few_pictures_is_an_error() -> None:
    images, texts = noisy_pairs(99, 0.1)
    with pytest.raises(UserError, match="100 pictures, there are 99"):
        r_precision(images, texts, seed=0)


def test_clip_scores() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(clip_scores(images, texts), torch.tensor([2.5, 0.0, 1.5]))
