"""How gradients of a step come about and move weights: groups, sums over pieces, clipping, a network's opponent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diptych.model.training.config import LoopConfig
from diptych.model.training.contracts import Piece, Reported
from diptych.model.training.muon import Muon, inner_matrices


def build_optimizers(
    model: nn.Module, config: LoopConfig, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """AdamW; and, where ``config.muon`` is above 0, Muon with what it moves. A group's "factor" is that of the learning
    rate."""
    matrices = list(inner_matrices(model)) if config.muon else []
    groups = parameter_groups(model, config.weight_decay, {id(parameter) for parameter, _ in matrices})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, config.weight_decay, config.precision))
        optimizers[1].param_groups[0]["factor"] = config.muon
    return optimizers


def parameter_groups(
    model: nn.Module, weight_decay: float, others: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Group the trained parameters but those whose ids are ``others``: decay the matrices of linear layers and the kernels of
    convolutions; leave embedding tables, LayerNorm, biases and the mask feature alone.

    (The papers' code decays everything, even what has no gradient in a step; at their learning rates both hardly
    differ.)
    """
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    trained = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in others
    ]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def add_gradients(pieces: Sequence[Piece]) -> tuple[Tensor, Reported]:
    """Run ``pieces`` forward and backward; return this process's part of the batch's mean loss and figures."""
    sums: Reported = {}
    for piece in pieces:
        result = piece.loss()
        parts = iter([(result[0] * piece.share, result[1])]) if isinstance(result, tuple) else result
        for loss, figures in parts:
            loss.backward()
            weighted = {key: value.detach() * piece.share for key, value in figures.items()}
            for key, value in {"": loss.detach(), **weighted}.items():
                sums[key] = sums[key] + value if key in sums else value
    return sums.pop(""), sums


def clip_at_step(
    optimizer: torch.optim.Optimizer,
    weights: Sequence[Tensor],
    largest: float,
    norms: Mapping[Any, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Have the next step of a fused ``optimizer`` scale the gradients of ``weights`` to a norm of at most ``largest``;
    return their norm. norms: of gradients that are not here as a whole.

    It does what ``clip_grad_norm_`` does, but the kernel divides the gradients as it reads them, where torch's own function
    reads and writes all of them once more.
    """
    gradients = [norms.get(weight, weight.grad) for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # the way in which torch.amp.GradScaler hands its scale to an optimizer
    optimizer.grad_scale = (norm / largest).clamp(min=1)  # type: ignore[attr-defined]
    return norm


class Opponent:
    """A network that a training plays against: it learns in the same steps, from gradients of its own.

    The step's loss is the sum of both networks' losses, each of which must reach its own network's weights alone. Both
    move at once, from the weights that the step before has left (as in pix2pixHD, whose generator and discriminator
    take their gradients from one pass). The opponent is no part of what is trained: no average, no evaluation.
    """

    def __init__(
        self, network: nn.Module, learning_rate: Callable[[int], float], betas: tuple[float, float]
    ) -> None:
        """Take a network that is on its device, the learning rate of a step, and Adam's betas."""
        self.network, self.learning_rate = network, learning_rate
        self.weights = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.weights, lr=0.0, betas=betas, fused=True)

    def step(self, step: int) -> None:
        """Move the weights that have gradients."""
        self.optimizer.param_groups[0]["lr"] = self.learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a checkpoint needs."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
