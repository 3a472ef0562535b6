"""Captions and paintings of the table's pictures by one model and seed, measured as `generate` and `evaluate`
do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.figures import write_figures
from diptych.model.pretrained import load_transformer
from pipelines.measuring.figures import EvaluateParams, with_mends
from pipelines.measuring.generation import IMAGE_GENERATOR
from pipelines.measuring.models import read_unified
from pipelines.measuring.test_set import measured_model
from pipelines.runner.stage import read_stage
from pipelines.tables.changes import tasks_of
from pipelines.tables.item import TableItem, embeddings, run

if TYPE_CHECKING:
    from diptych.eval.figures import Figure
    from diptych.model.networks.unified import UnifiedTransformer
    from pipelines.tables.params import TransformerTableParams


def main(item: TableItem, section: TransformerTableParams) -> None:
    """Write measured/MODEL-SEED in the table's folder: figures.json, pictures.parquet with the values of
    single pictures, examples.parquet with the first paintings, and parameters.txt."""
    table, model = item.table, item.values["model"]
    name, tasks = f"{model}-{item.stage.seed}", tasks_of(table, model)
    transformer, generated = Path(item.path(f"models/{name}")), item.unfinished / f"{name}.parquet"
    with (
        measured_model(
            read_unified(transformer, IMAGE_GENERATOR, item.stage.device),
            generated,
            captions=tasks != "paintings",
            paintings=tasks != "captions",
            pictures=section.pictures,
            guidance=section.guidance,
            evaluation=replace(read_stage("evaluate", EvaluateParams)[1], java=section.java),
            embeddings=embeddings(table),
        ) as measured,
        item.stage.write(f"{table.measured}/{name}") as folder,
    ):
        figures = with_mends(measured.figures, section.java, f"{table.name}.java")
        write_measured(folder, figures, load_transformer(transformer)[0])
        write_pictures(folder / "pictures.parquet", measured.rows)
        write_examples(folder / "examples.parquet", generated, section.examples)


def write_measured(folder: Path, figures: Sequence[Figure], model: UnifiedTransformer) -> None:
    """Make the folder of a measured model, with what all have: figures.json, and parameters.txt, its trained numbers."""
    folder.mkdir()
    write_figures(figures, folder / "figures.json")
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    (folder / "parameters.txt").write_text(f"{count}\n", encoding="utf-8")


def write_pictures(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row per picture: `image_id`, `painted.main_object` as a number, and its part in the figures that are
    means over pictures, by their names; null or NaN where it has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for row in rows for name in row if "." in name)
    columns: dict[str, list[Any]] = {"image_id": [row["image_id"] for row in rows]}
    for name in names:
        columns[name] = [row.get(name) for row in rows]
    right = [row.get("painted_right") for row in rows]
    columns["painted.main_object"] = [None if value is None else float(value) for value in right]
    schema = [(name, pa.string() if name == "image_id" else pa.float64()) for name in columns]
    pq.write_table(pa.table(columns, pa.schema(schema)), path)


def write_examples(path: Path, generated: Path, count: int) -> None:
    """The first `count` painted captions: `image_id`, `prompt`, `painted` and `real` as PNG or as the dataset
    has it."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["image_id", "prompt", "caption", "painted", "real"]
    table = pq.read_table(generated, columns=columns)
    painted = table.filter(pc.is_valid(table["prompt"]))
    pq.write_table((painted if len(painted) else table).slice(0, count), path)


if __name__ == "__main__":
    run("measured", ("model", "seed"), main)
