"""X-LXMERT-FT (UMT 5.4): a pretrained X-LXMERT fine-tuned on one direction by cross-entropy, in the steps of ours' stage 1 that train
it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from diptych.model.pretrained import save_transformer
from pipelines import train_token
from pipelines.runner.stage import read_stage
from pipelines.tables.changes import OursSteps
from pipelines.tables.item import TableItem, only_one_named, run
from pipelines.tables.token import of_one_task
from pipelines.train_token import TrainTokenParams

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams

Direction = Literal["captions", "paintings"]
DIRECTIONS: tuple[Direction, ...] = ("captions", "paintings")


def main(item: TableItem, section: TableParams) -> None:
    """Write models/ft_DIRECTION-SEED in the table's folder, and the training's history."""
    stage = item.stage
    (direction,) = (known for known in DIRECTIONS if known == item.values["direction"])
    _, ours = read_stage("train_token", TrainTokenParams)
    start = only_one_named(item.deps, "pretrained_")
    model, record = train_token.train(
        stage, replace(fine_tuning(ours, direction, stage.seed), initial=start), stage.device
    )
    with stage.write(item.path(f"models/ft_{direction}-{stage.seed}")) as folder:
        save_transformer(folder, *model)
    stage.write_history(item.path(f"histories/ft_{direction}-{stage.seed}.csv"), record.history)


def fine_tuning(ours: TrainTokenParams, direction: Direction, seed: int) -> TrainTokenParams:
    """The section train_token for one direction. It sees codebook vectors alone, as X-LXMERT does. Raises ParameterError where
    ours' schedule leaves no step to it."""
    training = replace(ours.training, seed=seed, questions=None, evaluation=None)
    steps = OursSteps(training.steps, "train_token.training.steps")
    own = of_one_task(training, direction, steps, f"ft_{direction}")
    return replace(ours, image_features="discrete", training=own)


if __name__ == "__main__":
    run("fine_tuned", ("direction", "seed"), main)
