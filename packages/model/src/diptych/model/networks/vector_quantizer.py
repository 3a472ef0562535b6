"""A codebook that follows what it quantizes by moving means (van den Oord et al. 2017, A.1; Razavi et al. 2019; L-Verse 3.3).

The rule is the papers': each code is the moving mean of the vectors that were nearest to it. By it alone, from a random start, most
codes are nobody's nearest and stay so. Two things keep all in use, and both are settings: the codebook starts from vectors of the
data (:meth:`VectorQuantizer.start`), and a code that hardly any vector takes is replaced by a vector of the batch.

What a step saw is summed up first and moves the means once, at the step's end: sums of several pieces or processes are those of the
whole batch, so that all have the same codebook. (The papers' code moves it at every level's pass, and in each process its own.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.devices import sent

LAPLACE = 1e-5


@dataclass(frozen=True)
class Quantized:
    """What becomes of vectors.

    Attributes:
        vectors: float ``[n, D, h, w]``, those of the nearest codes; their gradient goes to what was quantized (straight-through).
        codes: int64 ``[n, h, w]``.
        commitment: the mean squared distance between both, whose gradient reaches what was quantized alone.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """K codes of width D, shared by whatever calls it.

    Attributes:
        embedding: float32 ``[K, D]``, the codes.
        counts: float32 ``[K]``, the moving mean of how many vectors of a step take each code.
        sums: float32 ``[K, D]``, that of their sums.
    """

    embedding: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codebook_size: int, width: int) -> None:
        """Draw codes from a normal distribution, as the paper's code."""
        super().__init__()
        codes = torch.randn(codebook_size, width)
        self.register_buffer("embedding", codes)
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", codes.clone())
        self.upkeep()

    def upkeep(self, decay: float = 0.99, dead_share: float = 0.0, candidates: int = 0) -> None:
        """Say how the codes follow what is seen.

        Args:
            decay: of the moving means.
            dead_share: a code is replaced when fewer vectors take it than this share of the mean of all codes; 0: never.
            candidates: vectors that a step offers in the place of such codes (:meth:`forward`).
        """
        self.decay, self.dead_share = decay, dead_share
        self.passes = False  # vectors as they are, before the codebook starts
        self._seen_counts, self._seen_sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        self._offered = self.sums.new_zeros(candidates, self.sums.shape[1])
        self._is_offered = self.sums.new_zeros(candidates)

    def __len__(self) -> int:
        """Number of codes, K."""
        return len(self.embedding)

    def start(self, vectors: Tensor, generator: torch.Generator | None = None) -> None:
        """Begin with K of the ``vectors`` float ``[m, D]``, drawn by ``generator``; if they are fewer, with some of them more than
        once."""
        drawn = torch.randperm(len(vectors), generator=generator)
        chosen = drawn.repeat(-(-len(self) // len(vectors)))[: len(self)]
        self.embedding.copy_(vectors[chosen.to(vectors.device)])
        self.sums.copy_(self.embedding)
        self.counts.fill_(1.0)

    def forward(self, vectors: Tensor, candidates: tuple[Tensor, Tensor] | None = None) -> Quantized:
        """Quantize ``vectors`` ``[n, D, h, w]``, in float32: near codes are not told apart in less.

        In training mode what is seen is added to the step's sums (:meth:`running_sums`). While ``passes`` is true, the vectors are
        left as they are, and there is no commitment.

        Args:
            candidates: numbers of vectors, int64, counted over ``[n, h, w]``, and the places among all of the step's candidates
                that they fill, int64. A step's own places are drawn for its whole batch, whatever pieces it is cut into.
        """
        # here, so that codes are drawn on machines without diptych-features, too
        from diptych.features.assignment import nearest_codes

        with torch.autocast(vectors.device.type, enabled=False):
            rows = vectors.float().permute(0, 2, 3, 1)  # [n, h, w, D]
            if self.passes:
                return Quantized(vectors.float(), nearest_codes(rows, self.embedding), rows.new_zeros(()))
            with torch.no_grad():
                codes = nearest_codes(rows, self.embedding)
                found = F.embedding(codes, self.embedding)
                if self.training:
                    self._add(rows.flatten(0, 2), codes.flatten(), candidates)
            commitment = F.mse_loss(rows, found)
            quantized = rows + (found - rows).detach()
        return Quantized(quantized.permute(0, 3, 1, 2), codes, commitment)

    def _add(self, rows: Tensor, codes: Tensor, candidates: tuple[Tensor, Tensor] | None) -> None:
        # not bincount, for which a GPU is asked
        self._seen_counts.index_add_(0, codes, self._seen_counts.new_ones(()).expand(len(codes)))
        self._seen_sums.index_add_(0, codes, rows)
        if candidates is not None:
            chosen, places = (sent(part, rows.device) for part in candidates)
            self._offered[places] = rows[chosen]
            self._is_offered[places] = 1.0

    def running_sums(self) -> list[Tensor]:
        """What the step has seen, to be summed over processes in place
        (:class:`diptych.model.training.contracts.RunningMeans`)."""
        return [self._seen_counts, self._seen_sums, self._offered, self._is_offered]

    @torch.no_grad()
    def move_means(self) -> None:
        """End the step: the means move by what it has seen, and the codes with them."""
        if self.passes:
            return
        self.counts.lerp_(self._seen_counts, 1 - self.decay)
        self.sums.lerp_(self._seen_sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + LAPLACE) / (total + len(self) * LAPLACE) * total
        self.embedding.copy_(self.sums / smoothed[:, None])
        if self.dead_share:
            self._revive((self.dead_share * total.double() / len(self)).float())
        for tensor in self.running_sums():
            tensor.zero_()

    def _revive(self, least: Tensor) -> None:
        """Put candidates in the place of codes with counts below ``least``, a number on the device, as many as there are, the emptiest
        first. How many they are nobody asks: all codes that could be replaced are written, the others with what they are."""
        emptiest = self.counts.argsort(stable=True)[: len(self._offered)]
        chosen = self._is_offered.argsort(descending=True, stable=True)[: len(emptiest)]
        replaced = (self.counts[emptiest] < least) & (self._is_offered[chosen] > 0)
        offered = self._offered[chosen]
        for old, new in (
            (self.embedding, offered),
            (self.sums, offered * least),
            (self.counts, least.expand(len(chosen))),
        ):
            wide = replaced.view(-1, *[1] * (old.dim() - 1))
            old[emptiest] = torch.where(wide, new, old[emptiest])
