"""The order in which training visits samples: a function of (seed, step), so that any run resumes exactly."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of range(count), int64, that belongs to (seed, epoch)."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.setflags(write=False)
    return order


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The samples of a global step, int64 [batch_size].

    Epochs follow each other without a gap: the batch that crosses an epoch's end takes the rest of its
    samples from the next one, so that every sample is seen once an epoch and none is dropped.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, count)
    return np.array([epoch_order(count, seed, int(e))[o] for e, o in zip(epochs, offsets, strict=True)])
