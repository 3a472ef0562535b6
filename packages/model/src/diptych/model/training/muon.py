"""Muon (Jordan et al., 2024): the matrices of a network move by orthogonal steps.

A gradient's matrix has a few large singular values, and Adam moves mostly along these. Muon takes the momentum's nearest
matrix with equal singular values instead, so that rare directions move as far as frequent ones: a short training learns more
from as many steps. Beyond the papers, whose optimizer is AdamW; embeddings, heads, biases and norms keep it.

torch.optim.Muon does so one matrix after the other and in bfloat16 on any processor. Ours takes matrices of equal shape together,
the queries', keys' and values' parts of a projection each as a matrix of its own, computes in float32 where the processor
multiplies no bfloat16, and with better polynomials needs a round less. Of several processes each has the gradients and the momenta
of its own share of the matrices alone, and makes their steps for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
        self.processes = current_processes()
        self.owners = shares_of([parameter for parameter, _ in matrices], self.processes.count)
        super().__init__([parameter for parameter, _ in matrices], {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def sum_gradients(self) -> dict[nn.Parameter, Tensor]:
        """Give the sum of each gradient over all processes to the one that moves its matrix; return the sums' norms, 0 of those that
        another process has."""
        moved = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        if not moved:
            return {}
        gradients = [parameter.grad for parameter in moved]
        self.processes.sum_own(gradients, [self.owners[parameter] for parameter in moved])
        return {
            parameter: gradient.norm() if self._own(parameter) else gradient.new_zeros(())
            for parameter, gradient in zip(moved, gradients, strict=True)
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move the matrices that have gradients. Of several processes each makes the steps of its own matrices, whose gradients
        :meth:`sum_gradients` has given it."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            own = [parameter for parameter in moved if self._own(parameter)]
            gradients = [parameter.grad for parameter in own]
            momenta = [self.state[parameter]["momentum"] for parameter in own]
            ahead: list[Tensor] = []
            if own:  # one of many processes may have none
                torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
                ahead = list(torch._foreach_lerp(gradients, momenta, MOMENTUM))

            dtype = resolve_precision(moved[0].device, self.precision)
            matrices = [
                part
                for parameter, step in zip(own, ahead, strict=True)
                for part in self._parts(parameter, step)
            ]
            weights = [part for parameter in moved for part in self._parts(parameter, parameter)]
            owners = [self.owners[parameter] for parameter in moved for _ in range(self.parts[parameter])]
            steps = self.processes.share(steps_of(matrices, dtype), weights, owners, dtype)
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            for longest, pairs in by_longest_side(weights, steps).items():
                torch._foreach_add_(
                    [part for part, _ in pairs],
                    [step.view_as(part) for part, step in pairs],
                    alpha=-group["lr"] * ADAM_STEP * math.sqrt(longest),
                )

    @torch.no_grad()
    def gather(self) -> None:
        """Give every process the momenta of all, as a checkpoint has them."""
        known = [parameter for parameter in self.parts if self.state.get(parameter)]
        if self.processes.count == 1 or not known:
            return
        momenta = [self.state[parameter]["momentum"] for parameter in known]
        own = [momentum for parameter, momentum in zip(known, momenta, strict=True) if self._own(parameter)]
        owners = [self.owners[parameter] for parameter in known]
        torch._foreach_copy_(momenta, self.processes.share(own, momenta, owners, momenta[0].dtype))

    def _own(self, parameter: nn.Parameter) -> bool:
        """Whether this process moves it."""
        return self.owners[parameter] == self.processes.rank

    def _parts(self, parameter: nn.Parameter, values: Tensor) -> Sequence[Tensor]:
        """Of a parameter's values those of each of its matrices."""
        return values.chunk(self.parts[parameter])


def shares_of(parameters: Sequence[Tensor], count: int) -> dict[Tensor, int]:
    """Deal parameters to so many processes, each to the one that has the fewest numbers so far: neighbours go to different ones, so
    that a step in which some layers have no gradients is about even, too."""
    numbers, owners = [0] * count, {}
    for parameter in parameters:
        owners[parameter] = min(range(count), key=numbers.__getitem__)
        numbers[owners[parameter]] += parameter.numel()
    return owners


def steps_of(momenta: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalise matrices, or kernels ``[m, c, h, w]`` as matrices ``[m, c * h * w]`` with a row for each output, in ``dtype``:
    those of equal shape together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    matrices = [momentum.flatten(1) for momentum in momenta]
    for place, matrix in enumerate(matrices):
        alike.setdefault(tuple(matrix.shape), []).append(place)
    steps = list(matrices)
    for places in alike.values():
        made = orthogonalised(torch.stack([matrices[place].to(dtype) for place in places]))
        for place, step in zip(places, made, strict=True):
            steps[place] = step
    return steps


def by_longest_side(
    weights: Sequence[Tensor], steps: Sequence[Tensor]
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Matrices, or kernels as such, with their steps, by the larger number of their rows and columns."""
    pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for part, step in zip(weights, steps, strict=True):
        pairs.setdefault(max(len(part), part.numel() // len(part)), []).append((part, step))
    return pairs


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
