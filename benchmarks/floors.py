"""What no implementation can be faster than: the arithmetic of a work, and the weights that it has to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.alternate import seconds
from diptych.model.inference import transformer as inference
from diptych.model.networks.attention import Attention
from diptych.model.networks.unified import UnifiedTransformer

READ_BYTES = 2**28


@dataclass(frozen=True)
class Floor:
    """flops: of the matrix products of a work. weight_bytes: of the right-hand matrices of its products, each time one is read. In
    decoding these are the weights, and they do not fit the caches; in training they are activations and gradients as well, so that the
    number says nothing of it."""

    flops: int
    weight_bytes: int


class WeightReads(TorchDispatchMode):
    """Counts the bytes of the right-hand matrices of products."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.bytes += args[-1].numel() * args[-1].element_size()
        return func(*args, **(kwargs or {}))


def floor_of(model: UnifiedTransformer, work: Callable[[], object]) -> Floor:
    """Of ``work``, in which ``model`` may be a copy for inference."""
    # The counters know only torch's own product, and attention in its parts.
    few_rows, inference.FEW_ROWS = inference.FEW_ROWS, 0
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    fused = [module.fused for module in attentions]
    for module in attentions:
        module.fused = False
    try:
        with FlopCounterMode(display=False) as flops, WeightReads() as reads:
            work()
    finally:
        inference.FEW_ROWS = few_rows
        for module, before in zip(attentions, fused, strict=True):
            module.fused = before
    return Floor(flops.get_total_flops(), reads.bytes)


def product_rate() -> float:
    """FLOP/s of a large float32 matrix product, the best of some."""
    a, b = torch.randn(2, 2048, 2048).unbind()
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(5))


def read_rate() -> float:
    """Bytes a second of reading more memory than the caches hold, the best of some."""
    numbers = torch.ones(READ_BYTES // 4)
    return READ_BYTES / min(seconds(numbers.sum) for _ in range(5))
