"""Mixed precision for convolutional networks: when bfloat16 pays and where it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from .errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def autocast_context(device: torch.device | str, precision: str) -> AbstractContextManager:
    """The autocast context for a device.

    `precision` is "float32", "bfloat16" or "auto": bfloat16 on CUDA and on CPUs with AMX, else float32.
    (On CPUs that know bfloat16 only as AVX512 instructions, the backward pass of some convolutions falls
    back to a reference kernel and takes ten times longer.) Raises UserError for any other word.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: '{precision}' is unknown; choose one of {', '.join(PRECISIONS)}")
    kind = torch.device(device).type
    if precision == "auto":
        precision = "bfloat16" if kind == "cuda" or torch.cpu._is_amx_tile_supported() else "float32"
    return nullcontext() if precision == "float32" else torch.autocast(kind, dtype=torch.bfloat16)
