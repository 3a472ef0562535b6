from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from diptych.eval.errors import UserError
from diptych.eval.retrieval import clip_scores, r_precision, random_negatives


def noisy_pairs(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 12, generator=generator)
    texts = images + noise * torch.randn(count, 12, generator=generator)
    return normalize(images, dim=-1), normalize(texts, dim=-1)


def test_r_precision_equals_brute_force() -> None:
    images, texts = noisy_pairs(40, 0.9)
    shares = []
    for fold in range(4):
        negatives = random_negatives(40, 9, seed=5, fold=fold)
        wins = 0
        for image in range(40):
            assert image not in negatives[image] and len(set(negatives[image])) == 9
            own = float(images[image] @ texts[image])
            wins += all(own > float(images[image] @ texts[other]) for other in negatives[image])
        shares.append(wins / 40)
    mean, deviation = r_precision(images, texts, seed=5, negatives=9, folds=4)
    assert mean == pytest.approx(np.mean(shares)) and deviation == pytest.approx(np.std(shares))
    assert 0.3 < mean < 1


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
