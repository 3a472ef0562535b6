"""What a training changes from step to step, and how a checkpoint keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.training.config import LoopConfig
from diptych.model.training.contracts import Checkpoints, Record, RunningMeans
from diptych.model.training.muon import Muon
from diptych.model.training.optimisation import Opponent, build_optimizers, clip_at_step
from diptych.model.training.processes import Processes
from diptych.model.training.progress import Figures


class TrainingState:
    """The weights of a model with their optimizer and averages, its opponent's, and what the run has recorded.

    Attributes:
        weights: the model's trained parameters.
        means: the parts of the model that move by means of what they saw.
        averages: the weights' moving averages; empty where ``ema_decay`` is 0.
        kept: the weights of the last evaluation that had not fallen
            (:class:`diptych.model.training.stopping.Stopping`); empty where nothing is watched.
        record: what the training leaves besides the weights.
        figures: those since the last row of the record's history.
        step: steps done when the state was made or loaded.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        config: LoopConfig,
        betas: tuple[float, float],
        opponent: Opponent | None,
    ) -> None:
        self.model, self.opponent, self.ema_decay = model, opponent, config.ema_decay
        self.optimizers = build_optimizers(model, config, betas)
        self.muon = next((each for each in self.optimizers if isinstance(each, Muon)), None)
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.means = [module for module in model.modules() if isinstance(module, RunningMeans)]
        self.averages = [weight.detach().clone() for weight in self.weights] if self.ema_decay else []
        self.kept: list[Tensor] = []
        self.record = Record([], [], [])
        self.figures = Figures(name)
        self.step = 0
        self.matrix_norms: dict[nn.Parameter, Tensor] = {}

    def load(self, checkpoints: Checkpoints, started_from: str) -> None:
        """Go on from the newest checkpoint, if it is of a run that ``started_from`` the same (:func:`fingerprint`)."""
        state = checkpoints.load()
        if state is None or state["started_from"] != started_from:
            return
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.opponent:
            self.opponent.load_state_dict(state["opponent"])
        if self.ema_decay:
            self.averages = [
                average.to(weight.device)
                for average, weight in zip(state["averages"], self.weights, strict=True)
            ]
        self.record = Record(state["history"], state["evaluations"], state["samples"])
        self.kept = state["kept"]
        self.figures.sums = state["sums"]
        self.step = self.figures.saved_step = state["step"]

    def save(self, checkpoints: Checkpoints, started_from: str, step: int) -> None:
        """Write a checkpoint after ``step`` steps.

        Raises:
            UserError: it cannot be written. The message says which checkpoint is the last good one.
        """
        state = {
            "started_from": started_from,
            "step": step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "averages": self.averages,
            "history": self.record.history,
            "evaluations": self.record.evaluations,
            "samples": self.record.samples,
            "kept": self.kept,
            "sums": self.figures.sums,
        }
        if self.opponent:
            state["opponent"] = self.opponent.state_dict()
        try:
            checkpoints.save(state)
        except OSError as error:
            raise UserError(
                f"{self.figures.name}: the checkpoint of step {step} could not be written ({error}); "
                f"{self.figures.last_good()}; free some space and run again"
            ) from error
        self.figures.saved_step = step

    def sum(self, processes: Processes, figures: Sequence[Tensor]) -> None:
        """Sum over all processes what they have of a step: gradients, what the parts that move by means have seen, and its
        ``figures``. Of a matrix that Muon moves the sum is where it is moved, and its norm everywhere."""
        norms = self.muon.sum_gradients() if self.muon and processes.count > 1 else {}
        rivals = self.opponent.weights if self.opponent else []
        gradients = [
            weight.grad
            for weight in [*self.weights, *rivals]
            if weight.grad is not None and weight not in norms
        ]
        means = [tensor for module in self.means for tensor in module.running_sums()]
        processes.sum([*gradients, *norms.values(), *means, *figures])
        self.matrix_norms = norms

    def clip(self, largest: float) -> dict[str, Tensor]:
        """Have :meth:`move` scale the gradients of each network to a norm of at most ``largest``; return the norms."""
        norms = {"gradient_norm": clip_at_step(self.optimizers[0], self.weights, largest, self.matrix_norms)}
        if self.opponent and any(rival.grad is not None for rival in self.opponent.weights):
            rivals = self.opponent.weights
            norms["opponent_gradient_norm"] = clip_at_step(self.opponent.optimizer, rivals, largest)
        return norms

    def gather(self) -> None:
        """Have in all processes all that a checkpoint keeps."""
        if self.muon:
            self.muon.gather()

    def move(self, step: int, rate: float) -> None:
        """Let the gradients move the weights at the learning rate ``rate``, and the weights their averages."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        for module in self.means:
            module.move_means()
        if self.opponent:
            self.opponent.step(step)
        if self.ema_decay:
            # The average of the first steps must not remember the random start.
            decay = min(self.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    def finish(self) -> None:
        """Give the model the weights that the training leaves: those kept, else the averages, else the last ones."""
        left = self.kept or self.averages
        with torch.no_grad():
            if left:
                torch._foreach_copy_(self.weights, [weight.to(self.weights[0].device) for weight in left])


@contextmanager
def averaged(weights: list[nn.Parameter], averages: list[Tensor]) -> Iterator[None]:
    """Inside the block ``weights`` hold their ``averages``, if there are any; after it they are as before, bit by bit."""
    with torch.no_grad():
        kept = [weight.detach().clone() for weight in weights] if averages else []
        if averages:
            torch._foreach_copy_(weights, averages)
        try:
            yield
        finally:
            if averages:
                torch._foreach_copy_(weights, kept)


def fingerprint(model: nn.Module, *parts: object) -> str:
    """Hash what a run starts from: the initial weights and the ``parts`` (settings, data keys, other tensors).

    A checkpoint of a run that started from anything else is not resumed.
    """
    digest = hashlib.sha256()
    for part in (*model.state_dict().values(), *parts):
        if isinstance(part, Tensor):
            digest.update(part.detach().float().cpu().contiguous().numpy())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
