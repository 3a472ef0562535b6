"""Several processes that train one model together (torchrun): who this one is, its rows of a batch, sums over all.

Every process holds the whole model and works on its own rows of each step's batch. The gradients are then summed
with one plain all-reduce of those that exist, flattened; those that only one process reads go to it alone
(:mod:`diptych.model.training.muon`). Captioning and painting use different parts of the network;
PyTorch's ``DistributedDataParallel`` would have to look for the unused parameters after every forward pass, and it
averages over processes, where the loss is a mean over targets that are not equally many in each. A sum of weighted
gradients is exact, and the same parameters have gradients in all processes, because all take the same step.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.model.errors import UserError

# Longer than a stalled reader is given, so that its own message comes first.
TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together: ``rank`` counts from 0 to below ``count``."""

    rank: int
    count: int

    def own_pieces(self, batch_size: int, accumulation: int) -> list[slice]:
        """Rows of a batch that this process works on, a slice for each of its ``accumulation`` pieces.

        The batch is cut into consecutive pieces that differ by one row at most, in the order of the ranks, so that no
        row is lost or repeated.

        Raises:
            UserError: there are more pieces than rows.
        """
        pieces = self.count * accumulation
        if batch_size < pieces:
            raise UserError(
                f"a batch of {batch_size} cannot be cut into {pieces} pieces (accumulation {accumulation} times "
                f"{self.count} processes); raise the batch size or lower one of them"
            )
        edges = [batch_size * piece // pieces for piece in range(pieces + 1)]
        rows = [slice(first, end) for first, end in pairwise(edges)]
        return rows[self.rank * accumulation : (self.rank + 1) * accumulation]

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace every tensor (of one float dtype, all on one device) by its sum over all processes."""
        if self.count == 1:
            return
        flat = _flattened(tensors, tensors[0], tensors[0].dtype)
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_own(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Add what the other processes have of those ``tensors`` (of one dtype and device) whose ``owners``, ranks, are this one. Half
        of what :meth:`sum` sends; what others own stays as it is."""
        if self.count == 1:
            return
        of_ranks = self._by_owner(tensors, owners)
        own = of_ranks[self.rank]
        others = [of_ranks[rank] for rank in self._others()]
        sent = _flattened([tensor for each in others for tensor in each], tensors[0], tensors[0].dtype)
        received = self._exchange(
            sent.split([_numbers(each) for each in others]), [_numbers(own)] * len(others)
        )
        for part in received if own else ():
            pieces = part.split([tensor.numel() for tensor in own])
            torch._foreach_add_(
                own, [piece.view_as(tensor) for piece, tensor in zip(pieces, own, strict=True)]
            )

    def share(
        self, own: Sequence[Tensor], like: Sequence[Tensor], owners: Sequence[int], dtype: torch.dtype
    ) -> list[Tensor]:
        """What each of the ``owners``, ranks, has in the place of one of the tensors ``like``, in their shapes and order: of this
        process its ``own``. All are of ``dtype`` and on the device of ``like``. Those of others hold until the next call."""
        if self.count == 1:
            return list(own)
        of_ranks, others = self._by_owner(like, owners), self._others()
        sent = _flattened(own, like[0], dtype)
        received = self._exchange([sent] * len(others), [_numbers(of_ranks[rank]) for rank in others])
        pieces = {self.rank: iter(own)}
        for rank, part in zip(others, received, strict=True):
            pieces[rank] = iter(part.split([tensor.numel() for tensor in of_ranks[rank]]))
        return [next(pieces[owner]).view(tensor.shape) for tensor, owner in zip(like, owners, strict=True)]

    def _others(self) -> list[int]:
        """The other processes' ranks."""
        return [rank for rank in range(self.count) if rank != self.rank]

    def _by_owner(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> list[list[Tensor]]:
        """The tensors that each process owns."""
        of_ranks: list[list[Tensor]] = [[] for _ in range(self.count)]
        for tensor, owner in zip(tensors, owners, strict=True):
            of_ranks[owner].append(tensor)
        return of_ranks

    def _exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
        """Send one of the flat tensors ``sent`` to each other process, in the order of their ranks; return what came from each, of
        ``sizes``. Point to point: gloo's all-to-all and all-gather take twice the time."""
        received = _room("received", sent[0], sent[0].dtype, sum(sizes)).split(list(sizes))
        operations = []
        for rank, leaving, coming in zip(self._others(), sent, received, strict=True):
            operations += [dist.P2POp(dist.isend, leaving, rank)] if leaving.numel() else []
            operations += [dist.P2POp(dist.irecv, coming, rank)] if coming.numel() else []
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        return received

    def gather(self, own: Any) -> list[Any]:
        """What every process has, in the order of their ranks."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return found

    def agree(self, what: str, value: str) -> None:
        """Raise a UserError unless all processes have the same ``value``."""
        if self.count == 1:
            return
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(
                    f"process {rank} has another {what} than process 0; all must see the same data, parameters, code "
                    "and .cache/training"
                )


# of CPUs, where memory that the system gives anew takes longer than the copy into it
_rooms: dict[tuple[str, torch.dtype], Tensor] = {}


def _room(name: str, like: Tensor, dtype: torch.dtype, size: int) -> Tensor:
    """A flat tensor of so many numbers on the device of ``like``, for as long as no other of this name is asked for."""
    if like.device.type != "cpu":
        return like.new_empty(size, dtype=dtype)
    if (room := _rooms.get((name, dtype))) is None or len(room) < size:
        room = _rooms[name, dtype] = torch.empty(size, dtype=dtype)
    return room[:size]


def _flattened(tensors: Sequence[Tensor], like: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of tensors of ``dtype`` on the device of ``like``, one after the other, in the room for what is sent."""
    room = _room("sent", like, dtype, _numbers(tensors))
    if tensors:
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=room)
    return room


def _numbers(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@contextmanager
def threads_of_all() -> Iterator[None]:
    """Give this process the threads of all of this machine's, while the others wait for it."""
    own = torch.get_num_threads()
    torch.set_num_threads(own * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def current_processes() -> Processes:
    """This process and those it has joined by :func:`joined_processes`; alone otherwise."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes(0, 1)


@contextmanager
def joined_processes(device: str) -> Iterator[str]:
    """Join the processes that torchrun or Ray Train has started, and yield the device of this one.

    CPUs talk by gloo. GPUs talk by nccl, and ``cuda`` becomes the GPU of this process's place on its machine. Where they are
    joined already, as Ray Train does it, they are left so.
    """
    local = int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda"):
        if local >= torch.cuda.device_count():
            raise UserError(
                f"machine.processes: {local + 1} or more on this machine, which has {torch.cuda.device_count()} GPUs; "
                "use auto"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    joins = not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield device
        dist.barrier()  # nobody leaves while another still writes
    finally:
        if joins:
            dist.destroy_process_group()
