"""L-Verse's BiART with another seed, on the tokens that `make l-verse` has made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.model.pretrained import save_biart
from pipelines.l_verse import biart
from pipelines.l_verse.params import Params
from pipelines.runner.params import provided_by, read_params, read_section
from pipelines.tables.item import TableItem, run

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams


def main(item: TableItem, section: TableParams) -> None:
    """Write models/biart-SEED in the table's folder, and the training's history."""
    stage = item.stage
    provided = provided_by(stage.machine, stage.seed)
    params = read_section(Params, "l_verse", read_params(), provided=provided).biart
    model, record = biart.train(stage, params, stage.device)
    with stage.write(item.path(f"models/biart-{stage.seed}")) as folder:
        save_biart(folder, *model)
    stage.write_history(item.path(f"histories/biart-{stage.seed}.csv"), record.history)


if __name__ == "__main__":
    run("biart", ("seed",), main)
