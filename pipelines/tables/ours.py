"""Both stages of the default run's transformer with another seed, as `train_token` and `train_sequence` train it, questions and all."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.model.pretrained import save_transformer
from pipelines import train_sequence, train_token
from pipelines.runner.stage import read_stage
from pipelines.tables.item import TableItem, run
from pipelines.train_sequence import TrainSequenceParams
from pipelines.train_token import TrainTokenParams

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams


def main(item: TableItem, section: TableParams) -> None:
    """Write models/ours-SEED in the table's folder, and the history of both trainings. Nothing is measured meanwhile, and so nothing
    ends a training early."""
    stage = item.stage
    token, sequence = (
        read_stage("train_token", TrainTokenParams)[1],
        read_stage("train_sequence", TrainSequenceParams)[1],
    )
    own = replace(token.training, seed=stage.seed, evaluation=None)
    first, record = train_token.train(stage, replace(token, training=own), stage.device, "token")
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder)
        save_transformer(start, *first)
        then = replace(sequence.training, seed=stage.seed, evaluation=None)
        model, after = train_sequence.train(
            stage, replace(sequence, training=then), stage.device, "sequence", start
        )
    with stage.write(item.path(f"models/ours-{stage.seed}")) as left:
        save_transformer(left, *model)
    stage.write_history(item.path(f"histories/ours-{stage.seed}.csv"), [*record.history, *after.history])


if __name__ == "__main__":
    run("ours", ("seed",), main)
