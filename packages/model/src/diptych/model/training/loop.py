"""The loop that all trainings share: steps, gradient accumulation, evaluation, checkpoints, progress, history."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from diptych.model.errors import UserError
from diptych.model.training.config import LoopConfig
from diptych.model.training.contracts import Checkpoints, Evaluation, Record, Steps
from diptych.model.training.optimisation import Opponent, add_gradients
from diptych.model.training.processes import Processes, current_processes, threads_of_all
from diptych.model.training.progress import Progress
from diptych.model.training.reading import ReadAhead
from diptych.model.training.state import TrainingState, averaged
from diptych.model.training.stopping import Stopping

HISTORY_STEPS = 20
# So many history rows in a row that show the same kind of failure end a run.
FAILING_ROWS = 10


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
        started_from: :func:`diptych.model.training.state.fingerprint` of the run.
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
    state = TrainingState(model, name, config, betas, opponent)
    if checkpoints:
        state.load(checkpoints, started_from)
    start, end, figures = state.step, config.steps, state.figures
    if processes.rank:
        figures.saved_step = None
    processes.agree("start of the run", f"{started_from} {start}")

    if stopping and state.record.evaluations and stopping.ends(state.record.evaluations):
        end = start  # it had ended when it was killed
    model.train()
    if opponent:
        opponent.network.train()
    if start == 0 and evaluation is not None and evaluation.at_start:
        evaluate(state, 0, evaluation, stopping, processes)
    saved_at = time.monotonic()
    failed = failing_rows(state.record.history, failure)
    progress = Progress(name, start, config.steps, processes)
    reader = ReadAhead(steps.read, start, end)
    try:
        for step in range(start, end):
            torch.manual_seed(config.seed * 1_000_003 + step)
            pieces = steps.pieces(step, reader.take())
            if processes.rank:
                torch.manual_seed(dropout_seed(config.seed, step, processes.rank))
            loss, reported = add_gradients(pieces)
            last = step + 1 == config.steps
            saving = checkpoints is not None and processes.rank == 0
            saving &= last or time.monotonic() - saved_at > config.checkpoint_seconds
            asked = [torch.full_like(loss, saving)] if processes.count > 1 else []
            state.sum(processes, [loss, *reported.values(), *asked])
            figures.add(step, loss, {**reported, **state.clip(config.clip_norm)})

            evaluating = evaluation is not None and ((step + 1) % evaluation.every == 0 or last)
            logging = (step + 1) % HISTORY_STEPS == 0 or last
            # Looking at a number waits for a GPU. So a step that is not finite may be found some steps later, but
            # before anything is made of the weights that it left; and what process 0 asks the others for waits, too.
            looking = loss.device.type == "cpu" or evaluating or logging or (saving and not asked)
            if looking:
                figures.collect()
            if asked:
                saving = looking and bool(asked[0])
            rate = learning_rate(step)
            state.move(step, rate)

            if logging:
                means = figures.means()
                state.record.history.append({"step": step + 1, "learning_rate": rate, **means})
                progress.show(means)
                failed = failing_rows(state.record.history, failure)
            if failed == FAILING_ROWS:
                raise UserError(
                    f"{name}: at step {step + 1} and for {FAILING_ROWS} history rows in turn "
                    f"{failure(state.record.history)}; {figures.last_good()}; lower the learning rates"
                )
            progress.step(sum(piece.samples for piece in pieces))
            ended = (
                evaluation is not None
                and evaluating
                and evaluate(state, step + 1, evaluation, stopping, processes)
            )
            if saving:
                state.gather()
            if checkpoints is not None and saving and not failed and processes.rank == 0:
                state.save(checkpoints, started_from, step + 1)
                saved_at = time.monotonic()
            if ended:
                break
    finally:
        reader.close()
        progress.close()
    state.finish()
    model.eval()
    return state.record


def evaluate(
    state: TrainingState, step: int, evaluation: Evaluation, stopping: Stopping | None, processes: Processes
) -> bool:
    """Measure after ``step`` steps, in process 0; return whether the run is to end here, in all of them."""
    ended = torch.zeros((), device=state.weights[0].device)
    if processes.rank == 0:
        evaluations, name = state.record.evaluations, state.figures.name
        with averaged(state.weights, state.averages), threads_of_all():
            state.model.eval()
            measured, shown = evaluation.evaluate()
            state.model.train()
            evaluations.append({"step": step, **measured})
            state.record.samples.extend({"step": step, **sample} for sample in shown)
            figures_shown = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
            tqdm.write(f"{name}, step {step}: {figures_shown}")
            fallen = stopping.fallen(evaluations) if stopping else []
            if stopping and not fallen:
                state.kept = [weight.detach().clone() for weight in state.weights]
        if stopping and stopping.ends(evaluations):
            tqdm.write(f"{name}: ended after step {step}, {', '.join(fallen)}")
            ended += 1
    processes.sum([ended])
    return bool(ended)


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
