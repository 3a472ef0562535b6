"""Paintings by a pretrained model of one row and seed and by one sampler, measured as `evaluate` measures them (X-LXMERT's tables 1
to 4 and 6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.eval.figures import write_figures
from diptych.model.decoding.options import PaintOptions
from diptych.model.pretrained import load_transformer
from pipelines.measuring.generation import IMAGE_GENERATOR
from pipelines.measuring.test_set import measured_model
from pipelines.tables.item import TableItem, embeddings, only_one_in, read_entry, run
from pipelines.tables.measured import parameters, write_examples, write_pictures

if TYPE_CHECKING:
    from pipelines.tables.params import PretrainingTableParams


def main(item: TableItem, section: PretrainingTableParams) -> None:
    """Write measured/ROW_SAMPLER-SEED in the table's folder, as `measured` does: of the model among the item's dependencies, and
    through the image generator among them, the pipeline's own where there is none."""
    table, row, sampler = item.table, item.values["row"], item.values["sampler"]
    name = f"{row}_{sampler}-{item.stage.seed}"
    transformer, generated = only_one_in(item.deps, item.path("models")), item.unfinished / f"{name}.parquet"
    generators = [Path(dep) for dep in item.deps if Path(dep).parent == Path(item.path("generators"))]
    if load_transformer(transformer)[0].config.regresses != bool(generators):
        raise ValueError(
            f"{item.stage.name}: a model that regresses features, and no other, has a generator of its own"
        )
    with (
        measured_model(
            transformer,
            generated,
            captions=False,
            paint=read_entry(PaintOptions, table, "SAMPLERS", sampler),
            pictures=section.pictures,
            embeddings=embeddings(table),
            image_generator=generators[0] if generators else IMAGE_GENERATOR,
        ) as measured,
        item.stage.write(f"{table.measured}/{name}") as folder,
    ):
        folder.mkdir()
        write_figures(measured.figures, folder / "figures.json")
        write_pictures(folder / "pictures.parquet", measured.rows)
        write_examples(folder / "examples.parquet", generated, section.examples)
        (folder / "parameters.txt").write_text(f"{parameters(transformer)}\n", encoding="utf-8")


if __name__ == "__main__":
    run("painted", ("row", "sampler", "seed"), main)
