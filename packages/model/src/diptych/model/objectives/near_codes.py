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
        s is the median over codes of the squared distance to the nearest other. ``spread`` is above 0."""
        vectors = codebook.detach().float()
        count = min(NEIGHBOURS, len(vectors))
        rows = []
        for part in vectors.split(1024):  # not all K x K distances at once
            rows.append(torch.cdist(part, vectors).square().topk(count, largest=False))
        squared, near = (torch.cat(parts) for parts in zip(*rows, strict=True))
        nearest = squared[:, 1].median().clamp(min=1e-12) if count > 1 else squared.new_ones(())
        return cls(near, (-squared / (spread * nearest)).softmax(-1))

    def on(self, device: torch.device) -> NearCodes:
        """The same on ``device``."""
        return NearCodes(self.near.to(device), self.shares.to(device))

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy of logits ``[m, K]`` with the shared targets of codes int64 ``[m]``."""
        logits = logits.float()
        wanted = (logits.gather(-1, self.near[codes]) * self.shares[codes]).sum(-1)
        return (logits.logsumexp(-1) - wanted).mean()
