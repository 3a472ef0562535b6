"""X-LXMERT-FT (UMT 5.4): a pretrained X-LXMERT fine-tuned on one direction by cross-entropy, in the steps of ours' stage 1 that train
it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diptych.model.pretrained import save_transformer
from diptych.model.training.token import task_steps_before
from pipelines import train_token
from pipelines.runner.params import ParameterError
from pipelines.runner.stage import read_stage
from pipelines.tables.item import TableItem, only_one_named, run
from pipelines.train_token import TrainTokenParams

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams

DIRECTIONS = ("captions", "paintings")


def main(item: TableItem, section: TableParams) -> None:
    """Write models/ft_DIRECTION-SEED in the table's folder, and the training's history."""
    stage, direction = item.stage, item.values["direction"]
    _, ours = read_stage("train_token", TrainTokenParams)
    start = only_one_named(item.deps, "pretrained_")
    model, record = train_token.train(
        stage, replace(fine_tuning(ours, direction, stage.seed), initial=start), stage.device
    )
    with stage.write(item.path(f"models/ft_{direction}-{stage.seed}")) as folder:
        save_transformer(folder, *model)
    stage.write_history(item.path(f"histories/ft_{direction}-{stage.seed}.csv"), record.history)


def fine_tuning(ours: TrainTokenParams, direction: str, seed: int) -> TrainTokenParams:
    """The section train_token for one direction. It sees codebook vectors alone, as X-LXMERT does. Raises ParameterError where
    ours' schedule leaves no step to it."""
    training = ours.training
    captions = task_steps_before(training.steps, training.caption_share)
    steps = captions if direction == "captions" else training.steps - captions
    if steps == 0:
        raise ParameterError(
            f"params.yaml: train_token.training.caption_share {training.caption_share} leaves no step to {direction}"
        )
    own = replace(
        training,
        steps=steps,
        caption_share=float(direction == "captions"),
        seed=seed,
        questions=None,
        evaluation=None,
    )
    return replace(ours, image_features="discrete", training=own)


if __name__ == "__main__":
    run("fine_tuned", ("direction", "seed"), main)
