"""Work that goes to another device takes along what it computes with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipelines.runner.spread import NetworkWork, moved


@dataclass(frozen=True)
class Inner:
    codebook: Tensor
    name: str


@dataclass(frozen=True)
class Holder:
    network: nn.Module
    codebook: Tensor
    inner: Inner
    kind: type = Inner
    words: tuple[str, ...] = ("kite",)


def holder() -> Holder:
    return Holder(nn.Linear(2, 2), torch.ones(3), Inner(torch.ones(4), "boat"))


def devices(one: Holder) -> set[str]:
    return {tensor.device.type for tensor in (one.network.weight, one.codebook, one.inner.codebook)}


def test_networks_and_tensors_are_moved_and_nothing_else() -> None:
    there = moved(holder(), "meta")
    assert devices(there) == {"meta"}
    assert (there.codebook.shape, there.inner.codebook.shape) == ((3,), (4,))
    assert (there.inner.name, there.kind, there.words) == ("boat", Inner, ("kite",))
    words = Words()
    assert moved(words, "meta") is words


@dataclass(frozen=True)
class Words:
    words: tuple[str, ...] = ("kite",)


@dataclass(frozen=True)
class Multiplying(NetworkWork):
    held: Holder = field(default_factory=holder)

    def __call__(self, piece: int) -> int:
        return piece


def test_work_knows_the_device_that_it_is_on() -> None:
    here = Multiplying(device="cpu", precision="float32")
    assert here.on("cpu") is here
    there = here.on("meta")
    assert (there.device, there.precision, devices(there.held)) == ("meta", "float32", {"meta"})
