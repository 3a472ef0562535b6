"""How much memory of a GPU a step takes, from the shapes of its tensors alone: nothing is computed and nothing of its size is stored.

The step's own code runs on torch's fake tensors. On them every storage that comes to be is counted, as long as it lives, so that the
peak is that of activations, gradients and what is in between, in the order in which they come and go. The weights, what the optimizer
keeps of them and the averages are there all the time.

It takes the ways that a GPU takes: fused attention keeps no probabilities, dropout a byte for each number, LayerNorm is float32 under
autocast. What it does not see: the blocks that the allocator rounds up and cannot join, the workspaces of cuBLAS and cuDNN, CUDA's own
context.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.model.training.config import LoopConfig
from diptych.model.training.contracts import Piece
from diptych.model.training.muon import inner_matrices
from diptych.model.training.optimisation import add_gradients

# Where networks ask which way is the faster one.
BRANCHES = ("attention", "winograd", "image_generator")


@dataclass(frozen=True)
class StepMemory:
    """Bytes.

    Attributes:
        weights: of all networks that a step runs, frozen ones too, and the codebook.
        optimizer: what it keeps of the trained weights, and their averages.
        working: the largest sum of all else that is there at one time: activations, gradients, results in between.
        saved: of these, what the forward pass keeps for the backward pass.
    """

    weights: int
    optimizer: int
    working: int
    saved: int

    @property
    def total(self) -> int:
        """All at the peak."""
        return self.weights + self.optimizer + self.working


class Shapes(FakeTensorMode):
    """Tensors without numbers, but for operations of tensors that have some: those of a batch's texts and masks, which are made on the
    CPU before a step."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and not any(isinstance(leaf, FakeTensor) for leaf in given):
            return function(*args, **(kwargs or {}))
        return super().__torch_dispatch__(function, types, args, kwargs or {})

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """One of this shape."""
        return self.like(torch.empty(shape, dtype=dtype, device="meta"))

    def like(self, tensor: Tensor) -> Tensor:
        """One like a tensor of torch's meta device."""
        return self.fake_tensor_converter.from_meta_and_device(self, tensor, torch.device("cpu"))

    def network(self, network: nn.Module) -> nn.Module:
        """A network that was built on torch's meta device, with such weights in the place of its own."""
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    made = self.like(parameter.detach())
                    module._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.like(buffer)
        return network


class LiveBytes(TorchDispatchMode):
    """Counts the storages that come to be while it is entered, as long as they live.

    Attributes:
        now, peak: bytes of those that live now, and the most there were.
    """

    def __init__(self, fake_only: bool = False) -> None:
        """``fake_only``: count those of fake tensors alone."""
        super().__init__()
        self.kind: type[Tensor] = FakeTensor if fake_only else Tensor
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(storage) for storage in storages(_pytree.tree_leaves((args, kwargs)), Tensor)}
        result = function(*args, **(kwargs or {}))
        for storage in storages(_pytree.tree_leaves(result), self.kind):
            if id(storage) not in given and storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what the forward passes inside keep for their backward passes, but for ``weights``: each storage once.

    Attributes:
        bytes: of all.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.bytes = 0
        known = {weight.untyped_storage()._cdata for weight in weights}
        kept = []  # so that no number of a storage comes again

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                kept.append(storage)
                self.bytes += storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)


def storages(values: Iterable[Any], kind: type[Tensor]) -> list[Any]:
    """Those of the tensors of a kind."""
    return [value.untyped_storage() for value in values if isinstance(value, kind)]


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """Inside it the networks take a GPU's ways, and what autograd keeps is what it keeps there."""
    attend, norm = F.scaled_dot_product_attention, F.layer_norm

    def fused(*args: Any, **kwargs: Any) -> Tensor:
        # a GPU's kernel drops by the seed that it keeps; the CPU's, which saves the same otherwise, cannot drop
        kwargs.pop("dropout_p", None)
        return attend(*args[:4], **kwargs)

    def dropped(states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(states, p, training)[0] if training and p else states

    def normed(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return norm(states.float() if torch.is_autocast_enabled("cpu") else states, *args, **kwargs)

    with patch.multiple(F, scaled_dot_product_attention=fused, dropout=dropped, layer_norm=normed):
        patches = [patch(f"diptych.model.networks.{name}.on_cpu", lambda tensor: False) for name in BRANCHES]
        for change in patches:
            change.start()
        try:
            yield
        finally:
            for change in patches:
                change.stop()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Their bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(model: nn.Module, config: LoopConfig) -> int:
    """What AdamW (two numbers for each weight) or Muon (one) keep of the trained weights, and the average of each."""
    trained = size_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    by_muon = size_of(parameter for parameter, _ in inner_matrices(model)) if config.muon else 0
    return 2 * trained - by_muon + (trained if config.ema_decay else 0)


def step_memory(
    shapes: Shapes,
    config: LoopConfig,
    model: nn.Module,
    pieces: Sequence[Piece],
    opponent: nn.Module | None = None,
    frozen: Sequence[nn.Module] = (),
    codebook: Tensor | None = None,
) -> StepMemory:
    """The memory of a step of ``pieces``, whose networks are those of :meth:`Shapes.network`.

    Args:
        opponent: learns in the same step, by Adam. frozen: networks that do not learn. codebook: beside them, for as long.
    """
    networks = [model, *([opponent] if opponent is not None else []), *frozen]
    weights = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    weights += [] if codebook is None else [codebook]
    kept = optimizer_bytes(model, config) + (
        2 * size_of(opponent.parameters()) if opponent is not None else 0
    )
    saved = SavedBytes(weights)
    with shapes, like_a_gpu(), LiveBytes(fake_only=True) as live, saved:
        add_gradients(pieces)
    for weight in weights:
        weight.grad = None
    return StepMemory(size_of(weights), kept, live.peak, saved.bytes)
