"""Stage 2 of the row "w/o CLIP-based loss" and one seed. It alone starts from another row's stage 1, ours, so it is a stage
of its own beside the matrix `sequence`."""

from __future__ import annotations

from pipelines.runner.stage import Stage
from pipelines.tables.item import Table1Params, run
from pipelines.tables.sequence import train_row


def main(stage: Stage, table: Table1Params) -> None:
    """Write ablations/models/sequence_features-SEED and the training's history."""
    train_row("features", stage, table)


if __name__ == "__main__":
    run("features", ("seed",), main)
