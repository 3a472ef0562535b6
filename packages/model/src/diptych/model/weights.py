"""Weights in fewer bits on disk: what a packaged model stores; in memory they are float32 again.

Only matrices and convolutions are packed. Vectors (biases, norms, the statistics of inputs) are few, and results hang on
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diptych.model.errors import UserError

WEIGHT_KINDS = ("float32", "bfloat16", "int8")
SCALE = ".int8_scale"


def pack_weights(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return ``weights`` as they are to be stored.

    ``float32`` changes nothing. ``bfloat16`` rounds matrices to it. ``int8`` stores a matrix ``[rows, ...]`` as whole
    numbers from -127 to 127 with one float32 factor per row, the tensor ``NAME.int8_scale`` ``[rows]``: symmetric, by
    the row's largest value.

    Raises:
        UserError: another kind.
    """
    if kind not in WEIGHT_KINDS:
        raise UserError(f"weights: unknown kind {kind!r}; use one of {', '.join(WEIGHT_KINDS)}")
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        if kind == "float32" or tensor.ndim < 2 or not tensor.is_floating_point():
            packed[name] = tensor
        elif kind == "bfloat16":
            packed[name] = tensor.bfloat16()
        else:
            rows = tensor.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * 127) / 127
            packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
            packed[name + SCALE] = scale
    return packed


def unpack_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stored weights as float32, whatever kind of float they are stored as; whole numbers without a factor
    (:func:`pack_weights`) are returned as they are."""
    unpacked: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(SCALE):
            continue
        scale = weights.get(name + SCALE)
        if scale is not None:
            unpacked[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        else:
            unpacked[name] = tensor.float() if tensor.is_floating_point() else tensor
    return unpacked
