"""Stage 2 of one row and seed: sequence-level training as `train_sequence`, changed where the row differs
from ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diptych.model.pretrained import save_transformer
from pipelines import train_sequence
from pipelines.runner.stage import read_stage
from pipelines.tables.changes import read_changes, steps_of_ours
from pipelines.tables.item import TableItem, only_one_in, run
from pipelines.train_sequence import TrainSequenceParams

if TYPE_CHECKING:
    from diptych.model.training.sequence import SequenceTrainingConfig
    from pipelines.tables.params import TransformerTableParams
    from pipelines.tables.table import Table


def main(item: TableItem, section: TransformerTableParams) -> None:
    """Go on from the model of stage 1 among the item's dependencies, the row's own or another's; write
    models/sequence_ROW-SEED in the table's folder, and the training's history."""
    stage, row = item.stage, item.values["row"]
    _, ours = read_stage("train_sequence", TrainSequenceParams)
    params = sequence_params(item.table, row, ours, section.sequence_steps, stage.seed, section.stage_2)
    start = only_one_in(item.deps, item.path("models"))
    model, record = train_sequence.train(stage, params, stage.device, start=start)
    with stage.write(item.path(f"models/sequence_{row}-{stage.seed}")) as folder:
        save_transformer(folder, *model)
    stage.write_history(item.path(f"histories/sequence_{row}-{stage.seed}.csv"), record.history)


def sequence_params(
    table: Table,
    row: str,
    params: TrainSequenceParams,
    steps: int | None,
    seed: int,
    others: Mapping[str, Any],
) -> TrainSequenceParams:
    """The section train_sequence as this row's stage 2 takes it, without steps that answer and with the papers' optimizer.
    steps: of ours, null those of the section. others: settings that are other ones for all rows.

    Nothing is measured meanwhile, and so nothing ends a training early: all rows take the steps that they are
    said to take. Raises ParameterError where these are too few for the row's task.
    """
    changes, section = read_changes(table, row), without_answers(replace(params.training, **others))
    ours = steps_of_ours(table, "sequence", steps, section.steps)
    own = replace(section, steps=ours.count, seed=seed, muon=0.0, evaluation=None)
    if changes.tasks != "both":
        kept = ("scst",) if changes.tasks == "captions" else ("clip", "paint")
        # of each step of a cycle whether it trains one of the row's tasks
        training = [any(task in kept for task in tasks) for tasks in own.turns]
        cycles, rest = divmod(own.steps, len(training))
        count = cycles * sum(training) + sum(training[:rest])
        because = f"; all tasks' turns take {len(training)}"
        dropped = {f"{task}_steps": 0 for task in ("scst", "clip", "paint") if task not in kept}
        own_steps = ours.of_row(row, count, because=because)
        own = replace(own, steps=own_steps, **dropped)  # type: ignore[arg-type]
    if changes.painting_loss:
        own = replace(own, painting_loss=changes.painting_loss)
    return replace(params, training=own)


def without_answers(training: SequenceTrainingConfig) -> SequenceTrainingConfig:
    """The same with as many steps of the other tasks, and none that answers."""
    others = [tasks != ("answer",) for tasks in training.turns]
    cycles, rest = divmod(training.steps, len(others))
    return replace(training, steps=cycles * sum(others) + sum(others[:rest]), answer_steps=0)


if __name__ == "__main__":
    run("sequence", ("row", "seed"), main)
