"""Synthetic measurements of table 1, as items `measured` and `sampler` would leave them in the current
folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.tables.table import Table, read_table

TABLE = read_table("table1")
assert TABLE.samplers is not None
SAMPLERS = TABLE.samplers.titles
BLACK_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc330000000049"
    "454e44ae426082"
)


def write_equal(table: Table, folder: Path, better: dict[str, dict[str, float]]) -> None:
    """Measurements of any table, of seeds 0 to 2, in which all models are equal but for what one is `better` by in a column."""
    generator = np.random.default_rng(1)
    if table.texts is not None:
        for seed in range(3):
            texts = folder / table.folder / table.texts.file.format(seed=seed)
            texts.parent.mkdir(parents=True, exist_ok=True)
            texts.touch()
    for model in table.models:
        for seed in range(3):
            measured = folder / table.measured / f"{model}-{seed}"
            measured.mkdir(parents=True)
            records, columns = [], {"image_id": [f"{number}" for number in range(80)]}
            for column, what in table.columns.items():
                sign = 1 if what.higher_is_better else -1
                values = 0.6 + sign * better.get(model, {}).get(column, 0.0) + generator.normal(0, 0.002, 80)
                columns |= dict.fromkeys(what.parts or (column,), values)
                records.append({"name": column, "value": float(values.mean()), "reason": None})
            (measured / "figures.json").write_text(json.dumps(records))
            (measured / "parameters.txt").write_text("1000")
            pq.write_table(pa.table(columns), measured / "pictures.parquet")


def write_measured(gains: dict[str, dict[str, float]], seeds: int, noise: float = 0.02) -> None:
    """Measurements in which ours is better than a row's models by `gains` in a column, a share of 1;
    elsewhere equal."""
    generator = np.random.default_rng(1)
    base = {column: generator.uniform(0.5, 1.5, (seeds, 60)) for column in TABLE.columns}
    for row in TABLE.rows.values():
        for model in dict.fromkeys(row.models.values()):
            worse = next((g for name, g in gains.items() if model in TABLE.rows[name].models.values()), {})
            for seed in range(seeds):
                folder = Path(f"ablations/measured/{model}-{seed}")
                folder.mkdir(parents=True, exist_ok=True)
                records: list[dict[str, Any]] = []
                columns: dict[str, Any] = {"image_id": [f"{number}" for number in range(60)]}
                for column, what in TABLE.columns.items():
                    own = base[column][seed] - worse.get(column, 0.0) + generator.normal(0, noise, 60)
                    for name in what.parts or (column,):
                        columns[name] = own
                    missing = column in ("caption.meteor", "caption.spice")
                    value, reason = (None, "no Java") if missing else (float(own.mean()), None)
                    records.append({"name": column, "value": value, "reason": reason})
                (folder / "figures.json").write_text(json.dumps(records))
                (folder / "parameters.txt").write_text("1000\n")
                pq.write_table(pa.table(columns), folder / "pictures.parquet")
                rows = [
                    {
                        "image_id": "0",
                        "prompt": "a <red> kite",
                        "caption": "c",
                        "painted": BLACK_PNG,
                        "real": BLACK_PNG,
                    }
                ]
                pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")  # fmt: skip
    Path("ablations/samplers").mkdir(parents=True, exist_ok=True)
    for name in SAMPLERS:
        record = {"name": "painted.seconds", "value": 0.5, "low": None, "high": None}
        Path(f"ablations/samplers/{name}.json").write_text(json.dumps([record]))
