"""Targets that are shared by codes alike: a code that is nearly the right one is nearly right.

Beyond the papers. Of an autoencoder's thousand codes many draw the same to the eye, and which of them a cell has is noise that no text
tells; on few pictures a painter learns it by heart instead. Label smoothing over a code's neighbours in the codebook says what may be
exchanged, where that over all codes says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 16
PART = 1024


@dataclass(frozen=True)
class NearCodes:
    """Of each code those alike, itself included.

    Attributes:
        near: int64 ``[K, m]``.
        shares: float32 ``[K, m]``, of the target; each row adds up to 1.
    """

    near: Tensor
    shares: Tensor

    @classmethod
    def of(cls, codebook: Tensor, spread: float) -> NearCodes:
        """Codes of a codebook float ``[K, D]``: a code at the distance d has exp(-d^2 / (spread * s)) times the own code's share, where
        s is the median over codes of the squared distance to the nearest other that is not equal. ``spread`` is above 0."""
        vectors = codebook.detach().float()
        count = min(NEIGHBOURS, len(vectors))
        rows = []
        for first, part in enumerate(vectors.split(PART)):  # not all K x K distances at once
            squared = torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()
            own = torch.arange(len(part))
            squared[own, first * PART + own] = -1.0  # before others that are equal to it
            rows.append(squared.topk(count, largest=False))
        squared, near = (torch.cat(parts) for parts in zip(*rows, strict=True))
        squared.clamp_(min=0.0)
        apart = squared[:, 1][squared[:, 1] > 0] if count > 1 else squared[:0, 0]
        nearest = apart.median() if len(apart) else squared.new_ones(())
        return cls(near, (-squared / (spread * nearest)).softmax(-1))

    def on(self, device: torch.device) -> NearCodes:
        """The same on ``device``."""
        return NearCodes(self.near.to(device), self.shares.to(device))

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy of logits ``[m, K]`` with the shared targets of codes int64 ``[m]``."""
        logits = logits.float()
        wanted = (logits.gather(-1, self.near[codes]) * self.shares[codes]).sum(-1)
        return (logits.logsumexp(-1) - wanted).mean()
