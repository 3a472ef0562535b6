"""Stage 1 of one row and seed: token-level training as `train_token`, changed where the row differs from ours."""

from __future__ import annotations

from dataclasses import replace

from diptych.model.pretrained import save_transformer
from diptych.model.training.token import caption_steps_before
from pipelines import train_token
from pipelines.runner.params import ParameterError
from pipelines.runner.stage import Stage, read_stage
from pipelines.tables.item import OUTPUTS, Table1Params, run
from pipelines.tables.trainings import TRAININGS
from pipelines.train_token import TrainTokenParams


def main(stage: Stage, table: Table1Params) -> None:
    """Write ablations/models/token_ROW-SEED and the training's history."""
    row, seed = stage.item["row"], stage.seed
    _, section = read_stage("train_token", TrainTokenParams)
    params = token_params(row, section, table.token_steps, seed)
    model, record = train_token.train(stage, params, stage.device)
    with stage.write(f"{OUTPUTS}/models/token_{row}-{seed}") as folder:
        save_transformer(folder, *model)
    stage.write_history(f"{OUTPUTS}/histories/token_{row}-{seed}.csv", record.history)


def token_params(row: str, params: TrainTokenParams, steps: int | None, seed: int) -> TrainTokenParams:
    """The section train_token as this row's stage 1 takes it. steps: of ours, null those of the section.

    Nothing is measured meanwhile: validation changes no weight, and costs time. Raises ParameterError where no step is left
    for the row's task.
    """
    training, ours = TRAININGS[row], params.training
    own = replace(ours, steps=steps or ours.steps, seed=seed, evaluation=None)
    if training.tasks != "both":
        captions = caption_steps_before(own.steps, own.caption_share)
        count = captions if training.tasks == "captions" else own.steps - captions
        if count == 0:
            name = "table1.token_steps" if steps else "train_token.training.steps"
            raise ParameterError(
                f"params.yaml: {name} {own.steps} with train_token.training.caption_share {own.caption_share} leaves no step to "
                f"row {row}"
            )
        own = replace(own, steps=count, caption_share=float(training.tasks == "captions"))
    return replace(params, image_features=training.image_features or params.image_features, training=own)


if __name__ == "__main__":
    run("token", ("row", "seed"), main)
