"""Muon (Jordan et al., 2024): the matrices of a network move by orthogonal steps.

A gradient's matrix has a few large singular values, and Adam moves mostly along these. Muon takes the momentum's nearest
matrix with equal singular values instead, so that rare directions move as far as frequent ones: a short training learns more
from as many steps. Beyond the papers, whose optimizer is AdamW; embeddings, heads, biases and norms keep it.

torch.optim.Muon does the same one matrix after the other and in bfloat16 on any processor. Ours takes matrices of equal shape
together, the queries', keys' and values' parts of a projection each as a matrix of its own, and computes in float32 where the
processor multiplies no bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diptych.model.networks.attention import Projection
from diptych.model.precision import resolve_precision

# Of the polynomial x -> a x + b x^3 + c x^5, whose iteration takes singular values in (0, 1] near 1 in five rounds.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95
# The root mean square of a step of Adam's, as measured by Liu et al. (2025), in learning rates.
ADAM_STEP = 0.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return about the nearest matrices with orthogonal rows (or columns, if these are fewer) to float or bfloat16
    ``[b, m, n]``, in their dtype: singular values come to lie in 0.7..1.2 by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    if tall:
        matrices = matrices.mT
    norms = matrices.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = (matrices / norms).to(matrices.dtype).contiguous()
    for _ in range(ROUNDS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, orthogonalised, for matrices; a step's root mean square is that of Adam's at the same learning
    rate, whatever the shape. The size of gradients does not count, except in the mean that the momentum is."""

    def __init__(
        self, matrices: list[tuple[nn.Parameter, int]], weight_decay: float, precision: str = "auto"
    ) -> None:
        """Take matrices ``[p * m, n]``, each with p, the number of matrices ``[m, n]`` that lie in it one below the other. The
        learning rate is 0 until it is set in ``param_groups``; ``precision`` is that of :mod:`diptych.model.precision`."""
        self.precision = precision
        self.parts = {parameter: parts for parameter, parts in matrices}
        super().__init__([parameter for parameter, _ in matrices], {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move the matrices that have gradients."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in moved]
            momenta = [self.state[parameter]["momentum"] for parameter in moved]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            for (_, n), pieces in self._alike(moved, ahead).items():
                size = max(pieces[0][0].shape[0], n)
                dtype = resolve_precision(moved[0].device, self.precision)
                steps = orthogonalised(torch.stack([step for _, step in pieces]).to(dtype)).float()
                torch._foreach_add_(
                    [weights for weights, _ in pieces],
                    list(steps),
                    alpha=-group["lr"] * ADAM_STEP * math.sqrt(size),
                )

    def _alike(
        self, parameters: list[nn.Parameter], steps: list[Tensor]
    ) -> dict[tuple[int, int], list[tuple[Tensor, Tensor]]]:
        """Matrices with their steps, by shape."""
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter, step in zip(parameters, steps, strict=True):
            parts = self.parts[parameter]
            for weights, part in zip(parameter.chunk(parts), step.chunk(parts), strict=True):
                alike.setdefault((part.shape[0], part.shape[1]), []).append((weights, part))
        return alike


def inner_matrices(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield the trained matrices of the linear layers in a transformer's stacks of layers (its ModuleLists), and how many
    matrices lie in each: what Muon moves. Embeddings and heads are none of them."""
    for stack in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for module in stack.modules():
            if isinstance(module, nn.Linear) and module.weight.requires_grad:
                yield module.weight, 3 if isinstance(module, Projection) else 1
