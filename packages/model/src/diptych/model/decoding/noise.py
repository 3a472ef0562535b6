"""Randomness that belongs to an item, so that the batch around it does not change its result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.model.devices import sent


def uniform_noise(seeds: Sequence[int], *shape: int, device: torch.device) -> Tensor:
    """Return float64 ``[n, *shape]`` in [0, 1); row i depends on ``seeds[i]`` alone."""
    generator = torch.Generator()
    rows = [torch.rand(shape, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return sent(torch.stack(rows), device)


def normal_noise(seeds: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Return standard normal float32 ``[n, count]``; row i depends on ``seeds[i]`` alone."""
    generator = torch.Generator()
    rows = [torch.randn(count, generator=generator.manual_seed(seed)) for seed in seeds]
    return sent(torch.stack(rows), device)


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed whose noise has nothing to do with that of ``seed`` or of another purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


def sample_seeds(seeds: Sequence[int], samples: int) -> list[int]:
    """Return seeds for several samples of each item, those of one item side by side.

    The first sample keeps its item's seed: it is the one that is drawn where nobody asks for more.
    """
    return [
        derived_seed(seed, f"sample {sample}") if sample else seed
        for seed in seeds
        for sample in range(samples)
    ]


def gumbel_noise(noise: Tensor) -> Tensor:
    """Turn uniform noise in [0, 1) into Gumbel noise of the same shape."""
    return -(-noise.clamp(min=1e-12).log()).log()


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
