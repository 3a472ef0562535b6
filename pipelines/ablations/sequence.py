"""Stage 2 of one row and seed: sequence-level training as `train_sequence`, changed where the row differs from ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych.model.pretrained import save_transformer
from diptych.model.training.sequence import SequenceTrainingConfig
from pipelines import train_sequence
from pipelines.ablations.item import OUTPUTS, Table1Params, run
from pipelines.ablations.trainings import TRAININGS, Tasks
from pipelines.stage import Stage, read_stage
from pipelines.train_sequence import TrainSequenceParams


def main(stage: Stage, table: Table1Params) -> None:
    """Write ablations/models/sequence_ROW-SEED and the training's histories."""
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
    stage.write_history(f"{OUTPUTS}/histories/sequence_{row}_val-{seed}.csv", record.evaluations)


def sequence_params(
    row: str, params: TrainSequenceParams, steps: int | None, seed: int
) -> TrainSequenceParams:
    """The section train_sequence as this row's stage 2 takes it. steps: of ours, null those of the section.

    There are as many evaluations meanwhile as the section has; a model of one task is not stopped by figures of the other.
    """
    training, section = TRAININGS[row], params.training
    ours = replace(section, steps=steps or section.steps, seed=seed)
    own = ours
    if training.tasks != "both":
        kept = ("scst",) if training.tasks == "captions" else ("clip", "paint")
        cycles, rest = divmod(ours.steps, len(ours.cycle))
        count = sum(
            cycles * ours.cycle.count(task) + ours.cycle[:rest].count(task) for task in dict.fromkeys(kept)
        )
        dropped = {f"{task}_steps": 0 for task in ("scst", "clip", "paint") if task not in kept}
        own = replace(ours, steps=count, **dropped)  # type: ignore[arg-type]
    if training.painting_loss:
        own = replace(own, painting_loss=training.painting_loss)
    return replace(params, training=with_evaluation(own, section, training.tasks))


def with_evaluation(
    config: SequenceTrainingConfig, section: SequenceTrainingConfig, tasks: Tasks
) -> SequenceTrainingConfig:
    """`config` with the section's evaluation in its own number of steps, watching figures of these tasks only."""
    evaluation = section.evaluation
    if evaluation is None:
        return config
    every = max(1, round(evaluation.every * config.steps / section.steps))
    stopping = evaluation.stopping
    if stopping is not None and tasks != "both":
        watched = tuple(name for name in stopping.watched if (name == "val_cider_d") == (tasks == "captions"))
        stopping = replace(stopping, watched=watched) if watched else None
    return replace(config, evaluation=replace(evaluation, every=every, stopping=stopping))


if __name__ == "__main__":
    run("sequence", ("row", "seed"), main)
