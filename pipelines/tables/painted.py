"""Paintings by a pretrained model of one row and seed and by one sampler, measured as `evaluate` measures them (X-LXMERT's tables 1
to 4 and 6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.model.decoding.options import PaintOptions
from diptych.model.pretrained import load_transformer
from pipelines.measuring.generation import IMAGE_GENERATOR
from pipelines.measuring.models import read_unified
from pipelines.measuring.test_set import measured_model
from pipelines.tables.item import TableItem, embeddings, only_one_in, read_entry, run
from pipelines.tables.measured import write_examples, write_measured, write_pictures

if TYPE_CHECKING:
    from pipelines.tables.params import PretrainingTableParams


def main(item: TableItem, section: PretrainingTableParams) -> None:
    """Write measured/ROW_SAMPLER-SEED in the table's folder, as `measured` does: of the model among the item's dependencies, and
    through the image generator among them, the pipeline's own where there is none."""
    table, row, sampler = item.table, item.values["row"], item.values["sampler"]
    name = f"{row}_{sampler}-{item.stage.seed}"
    transformer, generated = only_one_in(item.deps, item.path("models")), item.unfinished / f"{name}.parquet"
    generators = [Path(dep) for dep in item.deps if Path(dep).parent == Path(item.path("generators"))]
    model, _, _ = load_transformer(transformer)
    if model.config.regresses != bool(generators):
        raise ValueError(
            f"{item.stage.name}: a model that regresses features, and no other, has a generator of its own"
        )
    with (
        measured_model(
            read_unified(transformer, generators[0] if generators else IMAGE_GENERATOR, item.stage.device),
            generated,
            captions=False,
            paint=read_entry(PaintOptions, table, "SAMPLERS", sampler),
            pictures=section.pictures,
            embeddings=embeddings(table),
        ) as measured,
        item.stage.write(f"{table.measured}/{name}") as folder,
    ):
        write_measured(folder, measured.figures, model)
        write_pictures(folder / "pictures.parquet", measured.rows)
        write_examples(folder / "examples.parquet", generated, section.examples)


if __name__ == "__main__":
    run("painted", ("row", "sampler", "seed"), main)
