"""Muon (Jordan et al., 2024): the matrices of a network move by orthogonal steps.

A gradient's matrix has a few large singular values, and Adam moves mostly along these. Muon takes the momentum's nearest
matrix with equal singular values instead, so that rare directions move as far as frequent ones: a short training learns more
from as many steps. Beyond the papers, whose optimizer is AdamW; embeddings, heads, biases and norms keep it.

torch.optim.Muon does so one matrix after the other and in bfloat16 on any processor. Ours takes matrices of equal shape together,
the queries', keys' and values' parts of a projection each as a matrix of its own, computes in float32 where the processor
multiplies no bfloat16, shares the work among processes, and with better polynomials needs a round less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diptych.model.networks.attention import Projection
from diptych.model.precision import resolve_precision
from diptych.model.training.processes import current_processes

# Of polynomials a x + b x^3 + c x^5, one after the other, which together take singular values from 0.001 to 1 as near to 1 as so
# many can: Polar Express (Amsel et al. 2025, its first four, slackened by 1% against rounding).
POLYNOMIALS = tuple(
    (a / 1.01, b / 1.01**3, c / 1.01**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115951949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    )
)
MOMENTUM = 0.95
# The root mean square of a step of Adam's, as measured by Liu et al. (2025), in learning rates.
ADAM_STEP = 0.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return about the nearest matrices with orthogonal rows (or columns, if these are fewer) to float or bfloat16
    ``[b, m, n]``, in their dtype: singular values of at least 0.001 of a matrix's norm come to lie in 0.4..1.6, smaller ones
    below."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    if tall:
        matrices = matrices.mT
    norms = matrices.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    x = (matrices / (1.01 * norms)).to(matrices.dtype).contiguous()
    for a, b, c in POLYNOMIALS:
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
        """Take matrices ``[p * m, n]``, each with p, the number of matrices ``[m, n]`` that lie in it one below the other, and
        kernels ``[m, c, h, w]``, which count as matrices ``[m, c * h * w]``. The learning rate is 0 until it is set in
        ``param_groups``; ``precision`` is that of :mod:`diptych.model.precision`."""
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
            alike = list(self._alike(moved, ahead).values())
            steps = self._steps([[step for _, step in pieces] for pieces in alike])
            for pieces, stepped in zip(alike, steps, strict=True):
                torch._foreach_add_(
                    [weights for weights, _ in pieces],
                    [step.view_as(weights) for step, (weights, _) in zip(stepped, pieces, strict=True)],
                    alpha=-group["lr"] * ADAM_STEP * math.sqrt(max(stepped.shape[1:])),
                )

    def _steps(self, alike: list[list[Tensor]]) -> list[Tensor]:
        """Matrices of equal shapes to ``[b, m, n]``, orthogonalised, in the dtype of the products: by each of several processes
        a share."""
        processes = current_processes()
        own = slice(processes.rank, None, processes.count)
        steps = []
        for matrices in alike:
            shape, device = matrices[0].shape, matrices[0].device
            dtype = resolve_precision(device, self.precision)
            steps.append(torch.zeros(len(matrices), *shape, dtype=dtype, device=device))
            if matrices[own]:
                share = torch.stack([matrix.to(dtype) for matrix in matrices[own]])
                steps[-1][own] = orthogonalised(share)
        processes.sum(steps)  # of each matrix one process has the step, the others zeros
        return steps

    def _alike(
        self, parameters: list[nn.Parameter], steps: list[Tensor]
    ) -> dict[tuple[int, int], list[tuple[Tensor, Tensor]]]:
        """Matrices with their steps ``[m, n]``, by shape; a kernel's row is all that one of its outputs reads."""
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter, step in zip(parameters, steps, strict=True):
            parts = self.parts[parameter]
            for weights, part in zip(parameter.chunk(parts), step.chunk(parts), strict=True):
                matrix = part.flatten(1)
                alike.setdefault((matrix.shape[0], matrix.shape[1]), []).append((weights, matrix))
        return alike


def inner_matrices(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield the trained matrices and kernels inside the layers or blocks that a network stacks (its ModuleLists), and how
    many matrices lie in each: what Muon moves, each once, also where stacks lie in stacks. Embeddings, stems and heads are none of
    them, but for those of a network that is stacked itself."""
    seen: set[int] = set()
    for stack in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for module in (module for block in stack for module in block.modules() if module is not block):
            known = id(module) in seen
            seen.add(id(module))
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad and not known:
                yield module.weight, 3 if isinstance(module, Projection) else 1
