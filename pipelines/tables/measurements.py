"""What was measured of a table's models: of a seed that ran here in a folder of each model, of one that ran elsewhere in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.runner.params import ParameterError
from pipelines.tables.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

# what the schema of a seed's file has: figures and sizes of the models; the parameters that determine them; where and when
MODELS, PARAMS, MADE = b"models", b"params", b"made"


@dataclass(frozen=True)
class ModelValues:
    """What was measured of a model and seed. figures: records by name. pictures: a row per picture, by image_id."""

    name: str
    parameters: int
    figures: Mapping[str, Mapping[str, Any]]
    pictures: pa.Table


def measured_seeds(table: Table, wanted: Sequence[int]) -> list[int]:
    """The seeds of which all that the page shows is there. Raises ParameterError where there is none."""
    found = [seed for seed in wanted if ran_here(table, seed) or elsewhere(table, seed).is_file()]
    if not found:
        raise ParameterError(
            f"{table.measured}: no seed of {list(wanted)} has all its rows: run `{table.command}`"
        )
    return found


def ran_here(table: Table, seed: int) -> bool:
    """Whether all that the page shows of a seed has been made in this clone."""
    files = [table.measured / f"{model}-{seed}" / "figures.json" for model in table.models]
    if table.texts is not None:
        files.append(Path(table.folder) / table.texts.file.format(seed=seed))
    return all(file.is_file() for file in files)


def elsewhere(table: Table, seed: int) -> Path:
    """The file of a seed that the table takes from another clone."""
    return table.measured / "elsewhere" / f"{seed}.parquet"


def measured_where(table: Table, seed: int) -> str:
    """Of a seed that ran elsewhere: by which commit, and on which processor."""
    import pyarrow.parquet as pq

    made: bytes = pq.read_schema(elsewhere(table, seed)).metadata[MADE]
    return made.decode()


def read_seed(table: Table, seed: int) -> dict[str, ModelValues]:
    """All models of a measured seed, by their names in the table."""
    if ran_here(table, seed):
        return {model: read_model(table.measured / f"{model}-{seed}") for model in table.models}
    return read_file(elsewhere(table, seed))


def read_model(folder: Path) -> ModelValues:
    """One model of one seed, from its folder."""
    import pyarrow.parquet as pq

    records = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return ModelValues(
        folder.name,
        int((folder / "parameters.txt").read_text()),
        {record["name"]: record for record in records},
        pq.read_table(folder / "pictures.parquet").sort_by("image_id"),
    )


def read_file(path: Path) -> dict[str, ModelValues]:
    """All models of one seed, from its file."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = pq.read_table(path)
    found = {}
    for name, kept in json.loads(rows.schema.metadata[MODELS]).items():
        pictures = rows.filter(pc.equal(rows["model"], name)).drop_columns("model")
        # of what this model does not do
        pictures = pictures.drop_columns(
            [key for key in pictures.column_names if pictures[key].null_count == len(pictures)]
        )
        figures = {record["name"]: record for record in kept["figures"]}
        found[name] = ModelValues(f"{name}-{path.stem}", kept["parameters"], figures, pictures)
    return found
