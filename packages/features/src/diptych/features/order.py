"""The order in which training visits samples: a function of (seed, step), so that any run resumes exactly.

Epochs follow each other without a gap and form one endless sequence of samples; a step is the next `batch_size` of
them. So every sample is seen once an epoch and none is dropped, whatever the batch size. A step is shared among
ranks in equal, consecutive pieces: all ranks take equally many steps of equal size (uneven ones let distributed
training wait for ever), and what a step holds does not depend on how many ranks there are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)  # a training that walks several orders, each within one epoch or across the end of one
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of range(count), int64, that belongs to (seed, epoch)."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.setflags(write=False)
    return order


def batch_indices(
    count: int, batch_size: int, seed: int, step: int, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """The samples of a step that belong to `rank`, int64 [batch_size / world_size].

    batch_size: samples of a step over all ranks, a multiple of world_size (ValueError). The batch that crosses an
    epoch's end takes the rest of its samples from the next one.
    """
    if batch_size % world_size:
        raise ValueError(f"a batch of {batch_size} cannot be shared equally among {world_size} ranks")
    share = batch_size // world_size
    first = step * batch_size + rank * share
    epochs, places = np.divmod(np.arange(first, first + share), count)
    return np.concatenate(
        [epoch_order(count, seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
    )
