"""Mixed precision for convolutional networks: when bfloat16 pays and where it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from diptych.features.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def resolved_precision(device: torch.device | str, precision: str) -> str:
    """What `precision` means on a device: "float32" or "bfloat16".

    "auto" is bfloat16 on CUDA and on CPUs with AMX, else float32. (On CPUs that know bfloat16 only as AVX512
    instructions, the backward pass of some convolutions falls back to a reference kernel and takes ten times
    longer.) Raises UserError for any other word.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: '{precision}' is unknown; choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    gains = torch.device(device).type == "cuda" or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if gains else "float32"


def autocast_context(device: torch.device | str, precision: str) -> AbstractContextManager:
    """The autocast context for a device and a precision (see `resolved_precision`)."""
    if resolved_precision(device, precision) == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
