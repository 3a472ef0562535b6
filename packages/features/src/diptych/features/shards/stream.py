"""Batches of shuffled samples: resumable in the middle of an epoch, shared among ranks and workers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from diptych.features.errors import UserError
from diptych.features.order import batch_indices
from diptych.features.shards.reading import ShardDataset


class ShardStream(IterableDataset):
    """The batches of one rank, step after step, for a training loop or `DataLoader(stream, batch_size=None)`.

    The order is that of `order.batch_indices`: every sample once an epoch, a function of (seed, step) alone. It is
    cut by sample, not by shard: one shard serves any number of ranks and workers. Every rank gets
    batch_size / world_size samples in every step, also where an epoch ends within a batch, so that no rank waits
    for another; a step holds the same samples whatever the number of ranks. DataLoader workers take turns step by
    step, and the loader hands the steps out in order.

    Yields dicts: `step`, `keys`, and the members asked for: `grid` float32 or float16 [n, 64, D], `codes` int64
    [n, 64], `captions` and `meta` lists, `jpg` list of bytes.

    To resume, keep `state(step)` of the next step in the training's checkpoint and call `resume` with it before the
    loader is made. (How far a loader's workers have read ahead is not how far training is.)

    batch_size: samples of a step over all ranks. start, stop: the first step and the one after the last (None: no
    end; a loop over it must then end itself). grid_type: torch.float16 leaves the conversion to the device.
    Raises UserError when the ranks cannot share a batch equally, or the split is empty.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
        members: Sequence[str] = ("grid", "codes", "captions"),
        grid_type: torch.dtype = torch.float32,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is none of {world_size} ranks (0 .. {world_size - 1})")
        if unknown := set(members) - {"grid", "codes", "captions", "meta", "jpg"}:
            raise ValueError(f"a sample has no {', '.join(sorted(unknown))}")
        if batch_size < 1 or batch_size % world_size:
            share = max(1, batch_size // world_size)
            raise UserError(
                f"batch_size {batch_size} cannot be shared equally among {world_size} ranks; take a multiple, "
                f"such as {share} x {world_size} = {share * world_size}"
            )
        if not len(dataset):
            raise UserError(f"{dataset.folder}: split {dataset.split!r} has no sample")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.start, self.stop = start, stop
        self.members, self.grid_type = tuple(members), grid_type

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for step in itertools.count(self.start + worker, workers):
            if self.stop is not None and step >= self.stop:
                return
            yield self.batch(step)

    def __len__(self) -> int:
        """Steps from start to stop; TypeError where there is no end."""
        if self.stop is None:
            raise TypeError("a stream without `stop` has no length")
        return max(0, self.stop - self.start)

    def batch(self, step: int) -> dict[str, Any]:
        """This rank's share of a step."""
        data = self.dataset
        indices = batch_indices(
            len(data), self.batch_size, self.seed, step, self.rank, self.world_size
        ).tolist()
        batch: dict[str, Any] = {"step": step, "keys": [data.keys[index] for index in indices]}
        if "grid" in self.members:
            batch["grid"] = (
                data.grid_tensor(indices)
                if self.grid_type == torch.float32
                else torch.from_numpy(data.grid(indices)).to(self.grid_type)
            )
        if "codes" in self.members:
            batch["codes"] = torch.from_numpy(data.codes(indices))
        if "captions" in self.members:
            batch["captions"] = [data.captions(index) for index in indices]
        if "meta" in self.members:
            batch["meta"] = [data.meta(index) for index in indices]
        if "jpg" in self.members:
            batch["jpg"] = [data.image_bytes(index) for index in indices]
        return batch

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps so that `resume` goes on with `step`: numbers and strings."""
        keys = hashlib.sha256("\n".join(self.dataset.keys).encode()).hexdigest()
        return {"step": step, "seed": self.seed, "batch_size": self.batch_size, "keys": keys}

    def resume(self, state: dict[str, Any]) -> None:
        """Start where `state` was taken; the number of ranks and workers may be another.

        Raises UserError when the samples, the seed or batch_size are others: the epoch could not be completed.
        """
        own = self.state(state["step"])
        if changed := [name for name in own if own[name] != state[name]]:
            raise UserError(
                f"{self.dataset.folder}: the checkpoint is of another order of samples ({', '.join(changed)} differ); "
                "restore them or start anew"
            )
        self.start = state["step"]
