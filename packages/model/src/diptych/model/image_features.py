"""Which features of a picture the transformer sees: the rule of ``TransformerConfig.image_features`` (UMT 3.2; 5.2,
table 1).

| image_features | captioning sees | visible cells show, in training to paint | written cells show, when painting |
| --- | --- | --- | --- |
| two_level | grid features | codebook vectors | codebook vectors |
| dense | grid features | grid features of the real picture | codebook vectors |
| discrete | codebook vectors | codebook vectors | codebook vectors |

All predict codes. ``dense`` paints from what its training never showed: the mismatch that the paper names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.features.assignment import nearest_codes
from diptych.model.networks.config import TransformerConfig


class PictureRows(Protocol):
    """The part of ``diptych.features.shards.reading.ShardDataset`` that says what pictures look like."""

    def grid(self, indices: Any) -> Any:
        """Grid features, numpy float16 ``[n, 64, D]``."""

    def codes(self, indices: Any) -> Any:
        """Codes, numpy int64 ``[n, 64]``."""


def caption_rows(config: TransformerConfig, shards: PictureRows) -> Callable[[Any], Any]:
    """Return the method of ``shards`` that reads what :func:`caption_input` needs: ``grid`` or ``codes``."""
    return shards.codes if config.image_features == "discrete" else shards.grid


def caption_input(config: TransformerConfig, codebook: Tensor, rows: Tensor) -> Tensor:
    """Return what captioning sees, float32 ``[n, cells, D]``.

    Args:
        codebook: float ``[K, D]``.
        rows: grid features float ``[n, cells, D]`` or, for ``discrete``, also codes int64 ``[n, cells]``. Of features
            ``discrete`` takes the nearest codebook vectors, by distances in float32.
    """
    if config.image_features != "discrete":
        return rows.float()
    if rows.is_floating_point():
        with torch.autocast(rows.device.type, enabled=False):  # near centroids are told apart in float32
            rows = nearest_codes(rows, codebook)
    return codebook[rows]


def painting_shows_features(config: TransformerConfig) -> bool:
    """Whether training to paint needs the real pictures' grid features beside their codes."""
    return config.image_features == "dense"
