"""Stage 1 of one row and seed: token-level training as `train_token`, changed where the row differs from
ours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from diptych.model.pretrained import save_transformer
from diptych.model.training.token import task_steps_before
from pipelines import train_token
from pipelines.runner.stage import read_stage
from pipelines.tables.changes import read_changes, steps_of_ours
from pipelines.tables.item import TableItem, run
from pipelines.train_token import TrainTokenParams

if TYPE_CHECKING:
    from diptych.model.training.token import TokenTrainingConfig
    from pipelines.tables.changes import OursSteps
    from pipelines.tables.params import TransformerTableParams
    from pipelines.tables.table import Table


def main(item: TableItem, section: TransformerTableParams) -> None:
    """Write models/token_ROW-SEED in the table's folder, and the training's history."""
    stage, row = item.stage, item.values["row"]
    _, ours = read_stage("train_token", TrainTokenParams)
    params = token_params(item.table, row, ours, section.token_steps, stage.seed)
    model, record = train_token.train(stage, params, stage.device)
    with stage.write(item.path(f"models/token_{row}-{stage.seed}")) as folder:
        save_transformer(folder, *model)
    stage.write_history(item.path(f"histories/token_{row}-{stage.seed}.csv"), record.history)


def token_params(
    table: Table, row: str, params: TrainTokenParams, steps: int | None, seed: int
) -> TrainTokenParams:
    """The section train_token as this row's stage 1 takes it, with the papers' two tasks and their optimizer. steps: of ours,
    null those of the section.

    Nothing is measured meanwhile: validation changes no weight, and costs time. Raises ParameterError where
    no step is left for the row's task.
    """
    changes, section = read_changes(table, row), params.training
    ours = steps_of_ours(table, "token", steps, section.steps)
    own = replace(section, steps=ours.count, seed=seed, muon=0.0, questions=None, evaluation=None)
    if changes.tasks != "both":
        own = of_one_task(own, changes.tasks, ours, row)
    return replace(params, image_features=changes.image_features or params.image_features, training=own)


def of_one_task(
    training: TokenTrainingConfig, task: Literal["captions", "paintings"], ours: OursSteps, row: str
) -> TokenTrainingConfig:
    """Ours' `training` of one task alone, in the steps that ours has for it. Raises ParameterError where it has none."""
    captions = task_steps_before(training.steps, training.caption_share)
    count = captions if task == "captions" else training.steps - captions
    given = f" with train_token.training.caption_share {training.caption_share}"
    return replace(training, steps=ours.of_row(row, count, given), caption_share=float(task == "captions"))


if __name__ == "__main__":
    run("token", ("row", "seed"), main)
