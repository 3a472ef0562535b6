"""Randomness that belongs to an item, so that the batch around it does not change its result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_noise(seeds: Sequence[int], *shape: int, device: torch.device) -> Tensor:
    """Return float64 ``[n, *shape]`` in [0, 1); row i depends on ``seeds[i]`` alone."""
    generator = torch.Generator()
    rows = [torch.rand(shape, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows).to(device)


def sample_from(log_probabilities: Tensor, noise: Tensor) -> Tensor:
    """Draw one index from each distribution by inverting its cumulative sum.

    Args:
        log_probabilities: float ``[..., C]``.
        noise: float64 ``[...]`` in [0, 1), one number per draw.

    Returns:
        int64 ``[...]``.
    """
    cumulative = log_probabilities.double().exp().cumsum(-1)
    threshold = noise[..., None] * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True)[..., 0]
    return drawn.clamp(max=log_probabilities.shape[-1] - 1)
