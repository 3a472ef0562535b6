"""Choice of the arithmetic precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from diptych.model.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_precision(device: torch.device | str, precision: str = "auto") -> torch.dtype:
    """Return the dtype that matrix products run in: ``torch.float32`` or ``torch.bfloat16``.

    ``auto`` takes bfloat16 on CUDA and on processors with AMX or AVX512-BF16, else float32.

    Raises:
        UserError: for any other name than ``auto``, ``float32``, ``bfloat16``.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: unknown value {precision!r}; use one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16" or torch.device(device).type == "cuda":
        return torch.bfloat16
    processor = torch.backends.cpu.get_cpu_capability()
    fast = processor.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast or torch.cpu._is_amx_tile_supported() else torch.float32


def autocast_context(device: torch.device | str, precision: str = "auto") -> AbstractContextManager:
    """Return a fresh autocast context for ``device``; one context must not mix passes with and without
    gradients, because autocast keeps the cast weights, and those made without gradients have no graph."""
    dtype = resolve_precision(device, precision)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)


def convolution_context(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """As :func:`autocast_context`, for networks of convolutions: on a CPU ``auto`` is float32, even where matrix products in bfloat16
    are fast."""
    auto_on_cpu = precision == "auto" and device.type == "cpu"
    return autocast_context(device, "float32" if auto_on_cpu else precision)
