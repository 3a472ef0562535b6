"""The nearest centroid of each grid cell, in torch alone: for one picture at a time, where FAISS is not installed."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1024  # cells at a time: their distances to the papers' 10,000 centroids are 40 MB


def nearest_codes(features: Tensor, centroids: Tensor) -> Tensor:
    """Grid features float [..., D] and centroids float [K, D], on one device -> codes int64 [...].

    The distance is Euclidean, as in clustering; of equally near centroids the first is taken.
    """
    cells = features.reshape(-1, features.shape[-1]).float()
    centroids = centroids.float()
    # |f - c|^2 without |f|^2, which is the same for all centroids
    constants = centroids.square().sum(1)
    # an exported program does not know yet how many blocks there will be
    blocks = [cells] if torch.compiler.is_exporting() else cells.split(_BLOCK)
    codes = [torch.addmm(constants, block, centroids.T, alpha=-2.0).argmin(1) for block in blocks]
    return torch.cat(codes).view(features.shape[:-1])
