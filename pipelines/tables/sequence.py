"""Stage 2 of one row and seed: sequence-level training as `train_sequence`, changed where the row differs from ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych.model.pretrained import save_transformer
from pipelines import train_sequence
from pipelines.runner.params import ParameterError
from pipelines.runner.stage import Stage, read_stage
from pipelines.tables.item import OUTPUTS, Table1Params, run
from pipelines.tables.trainings import TRAININGS
from pipelines.train_sequence import TrainSequenceParams


def main(stage: Stage, table: Table1Params) -> None:
    """Write ablations/models/sequence_ROW-SEED and the training's history."""
    train_row(stage.item["row"], stage, table)


def train_row(row: str, stage: Stage, table: Table1Params) -> None:
    """Go on from the row's stage 1."""
    seed = stage.seed
    _, section = read_stage("train_sequence", TrainSequenceParams)
    params = sequence_params(row, section, table.sequence_steps, seed)
    start = Path(f"{OUTPUTS}/models/token_{TRAININGS[row].token}-{seed}")
    model, record = train_sequence.train(stage, params, stage.device, start=start)
    with stage.write(f"{OUTPUTS}/models/sequence_{row}-{seed}") as folder:
        save_transformer(folder, *model)
    stage.write_history(f"{OUTPUTS}/histories/sequence_{row}-{seed}.csv", record.history)


def sequence_params(
    row: str, params: TrainSequenceParams, steps: int | None, seed: int
) -> TrainSequenceParams:
    """The section train_sequence as this row's stage 2 takes it. steps: of ours, null those of the section.

    Nothing is measured meanwhile, and so nothing ends a training early: all rows take the steps that they are said to take.
    Raises ParameterError where these are too few for the row's task.
    """
    training, section = TRAININGS[row], params.training
    ours = replace(section, steps=steps or section.steps, seed=seed, evaluation=None)
    own = ours
    if training.tasks != "both":
        kept = ("scst",) if training.tasks == "captions" else ("clip", "paint")
        cycles, rest = divmod(ours.steps, len(ours.cycle))
        count = sum(
            cycles * ours.cycle.count(task) + ours.cycle[:rest].count(task) for task in dict.fromkeys(kept)
        )
        if count == 0:
            name = "table1.sequence_steps" if steps else "train_sequence.training.steps"
            raise ParameterError(
                f"params.yaml: {name} {ours.steps} leaves no step to row {row}; all tasks' turns take {len(ours.cycle)}"
            )
        dropped = {f"{task}_steps": 0 for task in ("scst", "clip", "paint") if task not in kept}
        own = replace(ours, steps=count, **dropped)  # type: ignore[arg-type]
    if training.painting_loss:
        own = replace(own, painting_loss=training.painting_loss)
    return replace(params, training=own)


if __name__ == "__main__":
    run("sequence", ("row", "seed"), main)
