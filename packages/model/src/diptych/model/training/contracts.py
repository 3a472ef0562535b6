"""What a training gives the loop (steps, an evaluation, a place for checkpoints) and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Reported = dict[str, Tensor]


@dataclass(frozen=True)
class Piece:
    """Rows of a step's batch that run through the network together.

    Attributes:
        share: its share of what the batch's loss is a mean of (words, cells, images). The shares of all pieces of all
            processes add up to 1, so their weighted gradients add up to that of the whole batch. Where a step has
            batches of several tasks, that holds of each, and the step's loss is the sum of theirs.
        samples: captions or pictures in it, for the progress bar.
        loss: runs it; returns its mean loss with a graph, and the figures to report, means over it as well. Or gives
            that loss, times ``share``, in parts: backward of one frees its graph before the next is asked for.
    """

    share: float
    samples: int
    loss: Callable[[], tuple[Tensor, Reported] | Iterator[tuple[Tensor, Reported]]]


@runtime_checkable
class RunningMeans(Protocol):
    """A part of a network that moves by means of what it saw and not by gradients, such as
    :class:`diptych.model.networks.vector_quantizer.VectorQuantizer`."""

    def running_sums(self) -> list[Tensor]:
        """What the step has seen, float32; summed over all processes in place before the means move."""

    def move_means(self) -> None:
        """Move the means, as the optimizers move weights, and forget the step's sums."""


class Steps(Protocol):
    """The steps of a training. A step is a function of its number, the weights and torch's random state."""

    def read(self, step: int) -> Any:
        """Return what this process reads for a step. Runs ahead of the step, in a thread: nothing random, no model."""

    def pieces(self, step: int, data: Any) -> list[Piece]:
        """Return this process's pieces of a step from what :meth:`read` has read.

        Random choices that belong to the data (captions, masks) are drawn here, from torch's global generator on the
        CPU and for the whole batch, so that they do not depend on how it is cut.
        """


class Evaluation(Protocol):
    """What is measured and shown while a training runs: after every so many steps and after the last; ``at_start`` also
    before the first."""

    every: int
    at_start: bool

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return figures, and samples to show: dicts of strings, numbers and lists of them.

        The model is in eval mode. Leaves torch's random state as it is.
        """


class Checkpoints(Protocol):
    """Where a run keeps its state (``diptych.model.checkpoints.TrainingCheckpoints``)."""

    def load(self) -> dict[str, Any] | None:
        """Return the newest state or None."""

    def save(self, state: dict[str, Any]) -> None:
        """Store a state atomically; OSError where that is not possible."""


@dataclass(frozen=True)
class Record:
    """What a training leaves besides the weights.

    Attributes:
        history: a row per 20 steps: step, learning_rate, gradient_norm and the mean of every reported figure.
        evaluations: a row per evaluation: step and its figures.
        samples: those of all evaluations in turn, each with its ``step``.
    """

    history: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    samples: list[dict[str, Any]]
