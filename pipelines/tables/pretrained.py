"""The pretraining of one row and seed: X-LXMERT's as `pipelines/x_lxmert` has it, changed where the row differs from ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from diptych.model.pretrained import save_transformer
from pipelines.runner.params import read_params
from pipelines.tables.item import TableItem, read_entry, run
from pipelines.tables.params import x_lxmert_params
from pipelines.x_lxmert import pretrain

if TYPE_CHECKING:
    from pipelines.tables.params import PretrainingTableParams
    from pipelines.tables.table import Table
    from pipelines.x_lxmert.params import Params


@dataclass(frozen=True)
class PretrainingChanges:
    """What one row's pretraining does otherwise than ours: an entry of CHANGES of a table's data. The defaults are X-LXMERT's."""

    architecture: Literal["two_streams", "single_stream"] = "two_streams"
    discrete: bool = True
    uniform_masking: bool = True
    captions_only: bool = True


def main(item: TableItem, section: PretrainingTableParams) -> None:
    """Write models/pretrained_ROW-SEED in the table's folder, and the training's history."""
    stage, row = item.stage, item.values["row"]
    params = x_lxmert_params(section, item.table.name, read_params(), stage.seed)
    params = pretraining_params(item.table, row, params)
    model, record = pretrain.train(stage, params, stage.device)
    with stage.write(item.path(f"models/pretrained_{row}-{stage.seed}")) as folder:
        save_transformer(folder, *model)
    stage.write_history(item.path(f"histories/pretrained_{row}-{stage.seed}.csv"), record.history)


def pretraining_params(table: Table, row: str, params: Params) -> Params:
    """The section x_lxmert, as the table trains, as this row takes it. Every row has the tasks of all, so that vocabularies are the
    same. Raises ParameterError for a wrong row."""
    changes = read_entry(PretrainingChanges, table, "CHANGES", row)
    training = replace(
        params.pretraining.training,
        discrete=changes.discrete,
        uniform_masking=changes.uniform_masking,
        captions_only=changes.captions_only,
    )
    pretraining = replace(params.pretraining, training=training)
    return replace(params, architecture=changes.architecture, pretraining=pretraining)


if __name__ == "__main__":
    run("pretrained", ("row", "seed"), main)
