"""Mixed precision: when bfloat16 is faster and where it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from diptych.eval.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def autocast_context(device: torch.device | str, precision: str) -> AbstractContextManager:
    """The autocast context for a device.

    `precision` is "float32", "bfloat16" or "auto": bfloat16 on CUDA and on CPUs that multiply it in
    hardware (AMX or AVX512-BF16), else float32. Raises UserError for any other word.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: '{precision}' is unknown; choose one of {', '.join(PRECISIONS)}")
    kind = torch.device(device).type
    if precision == "auto":
        fast = kind == "cuda" or (kind == "cpu" and _cpu_multiplies_bfloat16())
        precision = "bfloat16" if fast else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16)


def _cpu_multiplies_bfloat16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
