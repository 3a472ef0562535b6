"""What a batch needs to be worked on without waiting for the device.

The host hands a GPU one operation after the other and runs ahead of it. Wherever it asks the device for a number, such as how long the
longest text is or how many cells a mask has (``states[mask]``), it waits until all that was handed over is done, and the device then
waits for the host. So what is asked of a batch is asked on the CPU, where it is prepared: :class:`Places`, :class:`Texts`; and it is
:func:`sent` from pinned memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; a GPU fetches it when it comes to it, which the host does not wait for."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def on_cpu(tensor: Tensor) -> bool:
    """Whether a CPU computes with it: what is the fastest way there is not on a GPU."""
    return tensor.device.type == "cpu"


@dataclass(frozen=True)
class Places:
    """The chosen places of n texts or grids of l places, and the numbers of them, row * l + place, in order.

    Attributes:
        mask: bool ``[n, l]``.
        numbers: int64 ``[m]``, of the chosen.
        others: int64 ``[n * l - m]``, of those that are not.
    """

    mask: Tensor
    numbers: Tensor
    others: Tensor

    @classmethod
    def of(cls, mask: Tensor | Places) -> Places:
        """Count those of a mask bool ``[n, l]``, which waits for it where it is on a GPU; counted ones stay as they are."""
        if isinstance(mask, Places):
            return mask
        flat = mask.flatten()
        return cls(mask, flat.nonzero()[:, 0], (~flat).nonzero()[:, 0])

    @classmethod
    def all(cls, n: int, length: int, device: torch.device) -> Places:
        """Every place of n texts or grids."""
        numbers = torch.arange(n * length, device=device)
        return cls(torch.ones(n, length, dtype=torch.bool, device=device), numbers, numbers[:0])

    @classmethod
    def split(cls, order: Tensor, count: int) -> tuple[Places, Tensor]:
        """The first ``count`` of each row of ``order`` int64 ``[n, l]``, which names every place once; and which these are, sorted,
        int64 ``[n, count]``. Nothing is counted."""
        first, last = (part.sort(1).values for part in (order[:, :count], order[:, count:]))
        rows = torch.arange(len(order), device=order.device)[:, None] * order.shape[1]
        mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, first, True)
        return cls(mask, (rows + first).flatten(), (rows + last).flatten()), first

    def to(self, device: torch.device | str) -> Places:
        """The same on ``device`` (:func:`sent`)."""
        return Places(*(sent(part, device) for part in (self.mask, self.numbers, self.others)))

    def of_values(self, values: Tensor) -> Tensor:
        """``values`` ``[n, l, ...]`` at the chosen places, in order: ``[m, ...]``."""
        return values.flatten(0, 1)[self.numbers]


@dataclass(frozen=True)
class Texts:
    """Texts that end in padding.

    Attributes:
        ids: int64 ``[..., t]``, cut to the longest text, or where the words to be predicted end.
        words: int64 ``[m]``, the numbers, counted over ``[..., t - 1]``, of the tokens after the first that are no padding.
        padded: whether there is any padding in ``ids``.
    """

    ids: Tensor
    words: Tensor
    padded: bool

    @classmethod
    def of(cls, ids: Tensor | Texts, pad: int, length: int | None = None) -> Texts:
        """Cut ids int64 ``[..., t]`` to ``length``, by default that of the longest text, and count their words, which waits for them
        where they are on a GPU; counted ones stay as they are."""
        if isinstance(ids, Texts):
            return ids
        if length is None:
            length = int((ids != pad).sum(-1).max())
        ids = ids[..., :length]
        visible = ids != pad
        return cls(ids, visible[..., 1:].flatten().nonzero()[:, 0], not bool(visible.all()))

    def to(self, device: torch.device | str) -> Texts:
        """The same on ``device`` (:func:`sent`)."""
        return Texts(sent(self.ids, device), sent(self.words, device), self.padded)

    def __len__(self) -> int:
        """n, where ids are ``[n, ...]``."""
        return len(self.ids)

    def flat(self) -> Texts:
        """Of c texts of each of n images, ids ``[n, c, t]``, n * c texts."""
        return Texts(self.ids.flatten(0, -2), self.words, self.padded)

    def visible(self, pad: int) -> Tensor | None:
        """Which tokens are no padding, bool like ``ids``; None: all."""
        return self.ids != pad if self.padded else None
