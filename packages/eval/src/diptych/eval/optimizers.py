"""How small networks are trained in few steps: Muon moves their inner matrices and kernels, AdamW the rest.

Muon (Jordan et al., 2024) moves a matrix by the nearest one to its momentum whose singular values are equal, so that rare
directions move as far as frequent ones. torch has it for matrices; kernels are matrices with a row for each output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Optimizers:
    """AdamW, and with `muon` above 0 Muon at `muon` times its learning rate for matrices and kernels; a step of Muon is as long
    as one of AdamW's at the same rate.

    ends: parts of the network, modules or weights, at which data enters it or results leave it: AdamW moves their matrices too,
    and all vectors. weight_decay: of matrices and kernels, not of vectors. betas: AdamW's.
    """

    def __init__(
        self,
        network: nn.Module,
        ends: Iterable[nn.Module | nn.Parameter],
        weight_decay: float,
        muon: float,
        betas: tuple[float, float],
    ) -> None:
        outer = {
            id(weight)
            for end in ends
            for weight in (end.parameters() if isinstance(end, nn.Module) else [end])
        }
        self.inner = [p for p in network.parameters() if muon and p.ndim > 1 and id(p) not in outer]
        moved = {id(weight) for weight in self.inner}
        others = [p for p in network.parameters() if id(p) not in moved]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        ]
        # Parameters of their own that lie in the memory of the weights: torch's Muon takes nothing but matrices.
        self.matrices = [
            [nn.Parameter(part) for part in as_matrices(weight, weight.detach())] for weight in self.inner
        ]
        for weight, parts in zip(self.inner, self.matrices, strict=True):
            if parts[0].data_ptr() != weight.data_ptr():
                raise ValueError(
                    f"a weight {list(weight.shape)} lies in memory neither row by row nor channels-last"
                )
        if self.inner:
            matrices = [matrix for parts in self.matrices for matrix in parts]
            own = torch.optim.Muon(
                matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            own.param_groups[0]["factor"] = muon
            self.optimizers.append(own)

    def step(self, learning_rate: float) -> None:
        """Move all weights by their gradients and forget these."""
        for weight, parts in zip(self.inner, self.matrices, strict=True):
            if weight.grad is not None:
                for matrix, gradient in zip(parts, as_matrices(weight, weight.grad), strict=True):
                    matrix.grad = gradient
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("factor", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for weight in self.inner:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def as_matrices(weight: Tensor, values: Tensor) -> list[Tensor]:
    """`values` [n, ...] of a weight (itself or its gradient) as matrices [n, m], in the weight's memory where they lie there;
    three of them where a weight holds queries, keys and values, as torch's own attention has it (n = 3 m)."""
    if not weight.is_contiguous():  # channels-last
        values = values.permute(0, *range(2, weight.ndim), 1)
    matrix = values.flatten(1)
    return list(matrix.chunk(3)) if weight.ndim == 2 and len(matrix) == 3 * matrix.shape[1] else [matrix]
