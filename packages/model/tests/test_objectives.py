"""The losses against independent statements of them."""

from __future__ import annotations

import torch

from diptych.model.objectives.token import sample_mask, smoothed_cross_entropy


def test_label_smoothing_is_the_papers():
    logits, targets = torch.randn(7, 9), torch.randint(9, (7,))
    wanted = torch.full((7, 9), 0.2 / 8).scatter(1, targets[:, None], 0.8)
    expected = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, 0.2), expected)


def test_mask_ratios_are_uniform():
    torch.manual_seed(0)
    counts = sample_mask(6400, 64).sum(1)
    assert counts.min() == 1 and counts.max() == 64
    shares = torch.bincount((counts - 1) // 16, minlength=4) / 6400
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)
    most = sample_mask(6400, 64, least=0.5).sum(1)
    assert most.min() == 33 and most.max() == 64


def test_a_share_of_paintings_begins_with_nothing_visible():
    torch.manual_seed(0)
    whole = (sample_mask(6400, 64, all_masked=0.25).sum(1) == 64).float().mean()
    # the uniform ratio, too, rounds up to all cells once in 64
    torch.testing.assert_close(whole, torch.tensor(0.25 + 0.75 / 64), rtol=0, atol=0.02)
    torch.manual_seed(0)
    without = sample_mask(50, 64, least=0.25)
    torch.manual_seed(0)
    assert torch.equal(sample_mask(50, 64, least=0.25, all_masked=0.0), without)
    assert sample_mask(50, 64, least=0.25, all_masked=1.0).all()
