"""What all trainings share: optimizer, schedule, gradient accumulation, checkpoints, progress, history."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diptych.model.errors import UserError
from diptych.model.image_features import PictureRows
from diptych.model.training.processes import Processes, current_processes, threads_of_all
from diptych.model.training.reading import ReadAhead
from diptych.model.training.stopping import Stopping

HISTORY_STEPS = 20
# So many history rows in a row that show the same kind of failure end a run.
FAILING_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What :func:`run_training` reads of a training's settings; each training adds its own.

    Attributes:
        steps: steps of the whole run.
        learning_rate: the peak, or all there is where it is constant.
        weight_decay: AdamW's, on the matrices of linear layers.
        clip_norm: largest gradient norm.
        ema_decay: of the moving average of the weights that becomes the model (0: its last weights).
        accumulation: pieces a step's batch is cut into, to run one after the other in less memory. The gradient is that
            of the whole batch up to rounding; only dropout and the noise of sampled paintings are drawn anew.
        precision: auto, float32 or bfloat16.
        seed: of data order, dropout, masks and noise.
        checkpoint_seconds: wall time between checkpoints; the only setting that does not determine the result.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    clip_norm: float
    ema_decay: float
    accumulation: int = 1
    precision: str
    seed: int
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        check_at_least_one(self, "steps", "accumulation")

    def determining(self) -> dict[str, Any]:
        """All settings that determine the result, for :func:`fingerprint`."""
        return {name: value for name, value in asdict(self).items() if name != "checkpoint_seconds"}


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is measured while a training runs.

    Attributes:
        every: steps between two evaluations; there is one more after the last step.
        images: val images that are measured, at most all; drawn by the seed.
    """

    every: int
    images: int

    def __post_init__(self) -> None:
        check_at_least_one(self, "every", "images", section="evaluation.")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(WatchConfig):
    """What is measured and shown while a training runs.

    Attributes:
        samples: how many of the images are shown.
        every, images: as in :class:`WatchConfig`.
    """

    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.samples <= self.images:
            raise UserError(f"evaluation.samples must be from 0 to images ({self.images}), is {self.samples}")


def check_at_least_one(settings: object, *names: str, section: str = "") -> None:
    """Raise a UserError where one of the ``settings`` of a ``section`` is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise UserError(f"{section}{name} must be at least 1, is {getattr(settings, name)}")


class Checkpoints(Protocol):
    """Where a run keeps its state (``diptych.model.checkpoints.TrainingCheckpoints``)."""

    def load(self) -> dict[str, Any] | None:
        """Return the newest state or None."""

    def save(self, state: dict[str, Any]) -> None:
        """Store a state atomically; OSError where that is not possible."""


class TrainingShards(PictureRows, Protocol):
    """The part of ``diptych.features.shards.ShardDataset`` that training reads."""

    keys: list[str]

    def __len__(self) -> int:
        """Number of images."""

    def captions(self, index: int) -> list[str]:
        """The captions of one image."""


Reported = dict[str, Tensor]


@dataclass(frozen=True)
class Piece:
    """Rows of a step's batch that run through the network together.

    Attributes:
        share: its share of what the batch's loss is a mean of (words, cells, images). The shares of all pieces of all
            processes add up to 1, so their weighted gradients add up to that of the whole batch.
        samples: captions or pictures in it, for the progress bar.
        loss: runs it; returns its mean loss with a graph, and the figures to report, means over it as well. Or gives
            that loss, times ``share``, in parts: backward of one frees its graph before the next is asked for.
    """

    share: float
    samples: int
    loss: Callable[[], tuple[Tensor, Reported] | Iterator[tuple[Tensor, Reported]]]


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


def warmup_constant(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of ``step``: linear from 0 to ``peak`` over the first share of the steps, then ``peak``."""
    return peak * min(1.0, (step + 1) / max(1, round(steps * warmup_share)))


def warmup_cosine(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of ``step``: as :func:`warmup_constant` over the first share of the steps, then a cosine to 0
    (UMT 5.1)."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return warmup_constant(step, steps, peak, warmup_share)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the matrices of linear layers; leave embedding tables, LayerNorm, biases and the mask feature alone.

    (The papers' code decays everything, even what has no gradient in a step; at their learning rates both hardly
    differ.)
    """
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def run_training(
    model: nn.Module,
    name: str,
    config: LoopConfig,
    steps: Steps,
    learning_rate: Callable[[int], float],
    started_from: str,
    checkpoints: Checkpoints | None,
    evaluation: Evaluation | None = None,
    opponent: Opponent | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    failure: Callable[[list[dict[str, float]]], str | None] = lambda history: None,
    stopping: Stopping | None = None,
) -> Record:
    """Train ``model`` in place; resume exactly where a checkpoint of the same run stands.

    Everything random in a step comes from torch's global generators, seeded with (seed, step) before the step. With
    several processes (:mod:`diptych.model.training.processes`) all draw the same choices for the whole batch; then
    those of rank 1 and up seed once more with their rank, so that dropout differs between processes. Only rank 0
    evaluates, shows progress and saves checkpoints; a run may go on with another number of processes.

    Args:
        learning_rate: of a step.
        started_from: :func:`fingerprint` of the run.
        evaluation: measures the averaged weights where there are such.
        opponent: learns in the same steps.
        betas: of the model's AdamW.
        failure: says what is wrong with the last row of a history, or None. While something is, no checkpoint is
            written, so that the last one is good; after 10 such rows in turn the run ends.
        stopping: ends the run when evaluations fall. With it the model becomes that of the last evaluation that had not
            fallen, whether the run was ended or not.

    Raises:
        UserError: a loss or gradient is not finite, the training fails as ``failure`` says, no data come for 10 minutes,
            or a checkpoint cannot be written. The message says which checkpoint is the last good one.
    """
    processes = current_processes()
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rivals = opponent.weights if opponent else []
    averages = [weight.detach().clone() for weight in weights] if config.ema_decay else []
    figures = Figures(name)
    history: list[dict[str, float]] = []
    evaluations: list[dict[str, float]] = []
    samples: list[dict[str, Any]] = []
    kept: list[Tensor] = []  # the weights of the last evaluation that had not fallen
    start = 0
    state = checkpoints.load() if checkpoints else None
    if state is not None and state["started_from"] == started_from:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if opponent:
            opponent.load_state_dict(state["opponent"])
        if config.ema_decay:
            averages = [
                average.to(weight.device) for average, weight in zip(state["averages"], weights, strict=True)
            ]
        history, figures.sums = state["history"], state["sums"]
        evaluations, samples = state["evaluations"], state["samples"]
        kept = state["kept"]
        start = figures.saved_step = state["step"]
    del state
    processes.agree("start of the run", f"{started_from} {start}")

    def evaluate(step: int) -> bool:
        """Measure after ``step`` steps, in process 0; returns whether the run is to end here, in all of them."""
        nonlocal kept
        ended = torch.zeros((), device=weights[0].device)
        if evaluation is not None and processes.rank == 0:
            with averaged(weights, averages), threads_of_all():
                model.eval()
                measured, shown = evaluation.evaluate()
                model.train()
                evaluations.append({"step": step, **measured})
                samples.extend({"step": step, **sample} for sample in shown)
                figures_shown = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
                tqdm.write(f"{name}, step {step}: {figures_shown}")
                fallen = stopping.fallen(evaluations) if stopping else []
                if stopping and not fallen:
                    kept = [weight.detach().clone() for weight in weights]
            if stopping and stopping.ends(evaluations):
                tqdm.write(f"{name}: ended after step {step}, {', '.join(fallen)}")
                ended += 1
        processes.sum([ended])
        return bool(ended)

    end = config.steps
    if stopping and evaluations and stopping.ends(evaluations):
        end = start  # it had ended when it was killed
    model.train()
    if opponent:
        opponent.network.train()
    if start == 0 and evaluation is not None and evaluation.at_start:
        evaluate(0)
    saved_at = time.monotonic()
    failed = failing_rows(history, failure)
    progress = Progress(name, start, config.steps, processes)
    reader = ReadAhead(steps.read, start, end)
    try:
        for step in range(start, end):
            last = step + 1 == config.steps
            torch.manual_seed(config.seed * 1_000_003 + step)
            pieces = steps.pieces(step, reader.take())
            if processes.rank:
                torch.manual_seed(dropout_seed(config.seed, step, processes.rank))
            rate = learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, reported = add_gradients(pieces)
            gradients = [weight.grad for weight in [*weights, *rivals] if weight.grad is not None]
            processes.sum([*gradients, loss, *reported.values()])
            norms = {"gradient_norm": clip_at_step(optimizer, weights, config.clip_norm)}
            if opponent and any(rival.grad is not None for rival in rivals):
                norms["opponent_gradient_norm"] = clip_at_step(opponent.optimizer, rivals, config.clip_norm)

            evaluating = evaluation is not None and ((step + 1) % evaluation.every == 0 or last)
            logging = (step + 1) % HISTORY_STEPS == 0 or last
            saving = checkpoints is not None and (
                time.monotonic() - saved_at > config.checkpoint_seconds or last
            )
            figures.add(step, loss, {**reported, **norms})
            # Looking at a number waits for a GPU. So a step that is not finite may be found some steps later, but
            # before anything is made of the weights that it left.
            if loss.device.type == "cpu" or evaluating or logging or saving:
                figures.collect()
            optimizer.step()
            optimizer.zero_grad()
            if opponent:
                opponent.step(step)
            if config.ema_decay:
                # The average of the first steps must not remember the random start.
                decay = min(config.ema_decay, (1 + step) / (10 + step))
                with torch.no_grad():
                    torch._foreach_lerp_(averages, weights, 1 - decay)

            if logging:
                means = figures.means()
                history.append({"step": step + 1, "learning_rate": rate, **means})
                progress.show(means)
                failed = failing_rows(history, failure)
            if failed == FAILING_ROWS:
                raise UserError(
                    f"{name}: at step {step + 1} and for {FAILING_ROWS} history rows in turn {failure(history)}; "
                    f"{figures.last_good()}; lower the learning rates"
                )
            progress.step(sum(piece.samples for piece in pieces))
            ended = evaluating and evaluate(step + 1)
            if checkpoints is not None and saving and not failed and processes.rank == 0:
                state = {
                    "started_from": started_from,
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "averages": averages,
                    "history": history,
                    "evaluations": evaluations,
                    "samples": samples,
                    "kept": kept,
                    "sums": figures.sums,
                }
                if opponent:
                    state["opponent"] = opponent.state_dict()
                try:
                    checkpoints.save(state)
                except OSError as error:
                    raise UserError(
                        f"{name}: the checkpoint of step {step + 1} could not be written ({error}); "
                        f"{figures.last_good()}; free some space and run again"
                    ) from error
                figures.saved_step, saved_at = step + 1, time.monotonic()
            if ended:
                break
    finally:
        reader.close()
        progress.close()
    with torch.no_grad():
        if kept or averages:
            torch._foreach_copy_(weights, [weight.to(weights[0].device) for weight in kept or averages])
    model.eval()
    return Record(history, evaluations, samples)


def failing_rows(
    history: list[dict[str, float]], failure: Callable[[list[dict[str, float]]], str | None]
) -> int:
    """Return how many rows at the end of ``history`` show a failure, at most 10."""
    for count in range(FAILING_ROWS):
        if count == len(history) or failure(history[: len(history) - count]) is None:
            return count
    return FAILING_ROWS


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout in process ``rank`` > 0.

    It has 32 bits, which is all that torch's generator on the CPU reads, and follows no pattern: small sums of step and
    rank would give neighbouring steps the dropout of neighbouring processes.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:4], "little")


def clip_at_step(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], largest: float) -> Tensor:
    """Have the next step of a fused ``optimizer`` scale the gradients of ``weights`` to a norm of at most ``largest``;
    return their norm.

    It does what ``clip_grad_norm_`` does, but the kernel divides the gradients as it reads them, where torch's own function
    reads and writes all of them once more.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # the way in which torch.amp.GradScaler hands its scale to an optimizer
    optimizer.grad_scale = (norm / largest).clamp(min=1)  # type: ignore[attr-defined]
    return norm


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


class Figures:
    """The figures since the last history row, and the check that they are finite."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sums: dict[str, list[float]] = {}  # figure: total and count
        self.saved_step = 0
        self._recent: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def add(self, step: int, loss: Tensor, figures: dict[str, Tensor]) -> None:
        """Take a step's loss and figures, among them ``gradient_norm``, without looking at them."""
        self._recent.append((step, loss, figures))

    def collect(self) -> None:
        """Add what :meth:`add` has taken to the sums. UserError at the first step that is not finite."""
        for step, loss, figures in self._recent:
            norms = [value.item() for key, value in figures.items() if key.endswith("gradient_norm")]
            if not math.isfinite(sum(norms) + loss.item()):
                shown = " and ".join(map(str, norms))
                raise UserError(
                    f"{self.name}: loss {loss.item()} and gradient norm {shown} at step {step}; "
                    f"{self.last_good()}; lower learning_rate, use precision float32, or look for such in the data"
                )
            for key, value in figures.items():
                total = self.sums.setdefault(key, [0.0, 0.0])
                total[0] += float(value)
                total[1] += 1
        self._recent.clear()

    def means(self) -> dict[str, float]:
        """Return the mean of every figure, and start anew."""
        means = {key: total / count for key, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def last_good(self) -> str:
        """Say which checkpoint a run can go on from."""
        if not self.saved_step:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is of step {self.saved_step}"


class Progress:
    """A bar of steps with the time left, samples per second and the latest means; only process 0 shows it."""

    def __init__(self, name: str, start: int, steps: int, processes: Processes) -> None:
        self._bar = tqdm(
            total=steps, initial=start, desc=name, unit="step", mininterval=1, disable=processes.rank > 0
        )
        self._processes = processes.count
        self._started_at = time.monotonic()
        self._samples = 0
        self._means: dict[str, str] = {}

    def step(self, samples: int) -> None:
        """Count one step of ``samples`` captions or pictures in this process."""
        self._samples += samples * self._processes
        rate = self._samples / (time.monotonic() - self._started_at)
        self._bar.set_postfix({"samples/s": f"{rate:.4g}", **self._means}, refresh=False)
        self._bar.update()

    def show(self, means: dict[str, float]) -> None:
        """Show these figures from now on."""
        self._means = {key: f"{value:.3f}" for key, value in means.items()}

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
