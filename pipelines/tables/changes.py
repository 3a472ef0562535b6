"""What the trainings of a row do otherwise than ours: an entry of CHANGES of a table's data, typed and
checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.runner.params import ParameterError
from pipelines.tables.item import read_entry

if TYPE_CHECKING:
    from pipelines.tables.table import Table

Tasks = Literal["both", "captions", "paintings"]


@dataclass(frozen=True)
class Changes:
    """What one row's trainings do otherwise than ours; the defaults are ours, which is what params.yaml says.

    image_features: null as in train_token. tasks: those that are trained, each in the steps of ours' schedule
    that train it, so that two models of one task each cost what ours costs. painting_loss: null as in
    train_sequence.
    """

    image_features: Literal["dense", "discrete"] | None = None
    tasks: Tasks = "both"
    painting_loss: Literal["features"] | None = None


def read_changes(table: Table, row: str) -> Changes:
    """Those of a row. Raises ParameterError for a wrong one, by row and key."""
    return read_entry(Changes, table, "CHANGES", row)


def tasks_of(table: Table, model: str) -> Tasks:
    """What a model, `token_ROW` after stage 1 or `sequence_ROW` after stage 2, has been trained for."""
    return read_changes(table, model.partition("_")[2]).tasks


@dataclass(frozen=True)
class OursSteps:
    """How many steps a stage of ours takes, and the parameter that says so."""

    count: int
    parameter: str

    def of_row(self, row: str, count: int, given: str = "", because: str = "") -> int:
        """The `count` of these that are left to a row's tasks. given, because: what else, and why, in the
        message.

        Raises ParameterError where none is left.
        """
        if count == 0:
            raise ParameterError(
                f"params.yaml: {self.parameter} {self.count}{given} leaves no step to row {row}{because}"
            )
        return count


def steps_of_ours(
    table: Table, stage: Literal["token", "sequence"], own: int | None, steps: int
) -> OursSteps:
    """own: what the table's section says of the stage's steps; null: `steps`, those of the stage's own
    section."""
    if own is None:
        return OursSteps(steps, f"train_{stage}.training.steps")
    return OursSteps(own, f"{table.name}.{stage}_steps")
