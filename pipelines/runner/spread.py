"""Pieces of a stage's work, in this process or dealt to workers on a Ray cluster (`machine.ray_address`)."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from diptych.features.ray_cluster import Death, RayPool
from diptych.model.errors import UserError
from pipelines.runner.ray_cluster import cluster_devices, cluster_of, enter_project
from pipelines.runner.stage import Stage
from pipelines.runner.threads import prepare_process

Piece = TypeVar("Piece")
Result = TypeVar("Result")
# workers that may die on one piece: what dies again is the piece's fault, or memory's
MOST_DEATHS = 3
# finished pieces that wait for an earlier one, for each worker
AHEAD = 4


class Work(Protocol[Piece, Result]):  # type: ignore[misc]
    """What is done to each piece, with all that it reads: it travels to other processes."""

    def on(self, device: str) -> Callable[[Piece], Result]:
        """The same with its networks on a device, ready to be called."""


@dataclass(frozen=True, kw_only=True)
class NetworkWork:
    """Work that networks do. Its fields that are networks or tensors, or dataclasses that hold some, lie on `device`; precision: of
    the arithmetic there."""

    device: str
    precision: str

    def on(self, device: str) -> Self:
        """The same on another device."""
        return self if device == self.device else replace(moved(self, device), device=device)


Holder = TypeVar("Holder")


def moved(holder: Holder, device: str) -> Holder:
    """A dataclass with the networks and tensors that it, or a dataclass in it, holds on a device."""
    import torch

    changed = {}
    for field in fields(holder):  # type: ignore[arg-type]
        value = getattr(holder, field.name)
        if isinstance(value, (torch.nn.Module, torch.Tensor)):
            changed[field.name] = value.to(device)
        elif is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = moved(value, device)
    return replace(holder, **changed) if changed else holder  # type: ignore[type-var]


@dataclass(frozen=True)
class Numbered(Generic[Piece]):
    number: int
    piece: Piece


def spread(stage: Stage, work: Work[Piece, Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    """`work` of each piece, in the order of the pieces, whoever did it: on a cluster a worker for each GPU, or for each core where
    there are none. A worker that is lost, or its node, is replaced and its pieces are done again.

    Raises UserError where the cluster does not answer, or several workers die on the same piece.
    """
    if stage.machine.ray_address is None:
        yield from map(work.on(stage.device), pieces)
        return
    device, count = cluster_devices(stage.machine)
    import ray

    workers = max(1, min(len(pieces), count))
    # one copy for all; as bytes, since what it reads is found from the project's folder, where a worker first has to be. From the CPU,
    # which every node has
    packed = ray.put(ray.cloudpickle.dumps(work.on("cpu") if isinstance(work, NetworkWork) else work))
    load = partial(_prepared, os.getcwd(), packed, device)
    pool = RayPool(load, workers, device == "cuda", cluster_of(stage.machine))
    waiting = deque(Numbered(number, piece) for number, piece in enumerate(pieces))
    done: dict[int, Result] = {}
    deaths: Counter[int] = Counter()
    following = 0
    try:
        while following < len(pieces):
            while pool.has_room and waiting and waiting[0].number < following + AHEAD * workers:
                pool.submit(waiting.popleft())
            for task, outcome in pool.collect(seconds=0.5):
                if not isinstance(outcome, Death):
                    done[task.number] = outcome
                    continue
                deaths[task.number] += 1
                if deaths[task.number] >= MOST_DEATHS:
                    raise UserError(
                        f"{stage.name}: {MOST_DEATHS} workers died on piece {task.number + 1} of {len(pieces)}, the last: "
                        f"{outcome.reason}; lower the batch size, or look at `ray status`"
                    )
                waiting.appendleft(task)
            while following in done:
                yield done.pop(following)
                following += 1
    finally:
        pool.close()


def _prepared(folder: str, packed: Any, device: str) -> Callable[[Numbered[Any]], Any]:
    """The work as a worker does it, with a core of its own. packed: reference to its bytes."""
    import ray

    enter_project(folder)
    prepare_process(1)
    ready = ray.cloudpickle.loads(ray.get(packed)).on(device)
    return lambda task: ready(task.piece)
