"""A human study of a table's paintings (UMT, figure 3): `make study-table2`.

    python -m pipelines.tables.study table2 STUDY [--training-seed 0] [options of `diptych-study create`]

Every row that paints gives the pictures that the items of one seed have kept; ours comes first and is compared with each of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from diptych.eval.study.command import main as create
from pipelines.runner.errors import one_line_errors
from pipelines.runner.params import ParameterError
from pipelines.tables.item import mends
from pipelines.tables.table import Table, read_table


def main() -> None:
    """Write pictures and captions into a folder for a moment, and a study from them."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.tables.study", description=__doc__)
    parser.add_argument("table", help="a folder of pipelines/tables, such as table2")
    parser.add_argument("study", type=Path, help="the file to write, such as study.db")
    parser.add_argument("--training-seed", type=int, default=0, help="of the table's (default: 0)")
    arguments, others = parser.parse_known_args()
    with one_line_errors(arguments.table, mends(arguments.table)), tempfile.TemporaryDirectory() as folder:
        table = read_table(arguments.table)
        captions, systems = write_pictures(table, arguments.training_seed, Path(folder))
        options = [part for name, path in systems.items() for part in ("--system", f"{name}={path}")]
        sys.exit(create(["create", str(arguments.study), "--captions", str(captions), *options, *others]))


def write_pictures(table: Table, seed: int, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Write captions.json and a folder of pictures for each row that paints; return both. Raises ParameterError where the table has
    kept no pictures of that seed."""
    import pyarrow.parquet as pq

    captions: dict[str, str] = {}
    systems: dict[str, Path] = {}
    for name, row in table.rows.items():
        if "painted" not in row.models:
            continue
        kept = table.measured / f"{row.models['painted']}-{seed}" / "paintings.parquet"
        if not kept.is_file():
            raise ParameterError(
                f"{kept} is missing: this table keeps no paintings, or seed {seed} has not run"
            )
        systems[name] = folder / name
        systems[name].mkdir()
        for painting in pq.read_table(kept).to_pylist():
            captions[painting["image_id"]] = painting["prompt"]
            (systems[name] / f"{painting['image_id']}.png").write_bytes(painting["painted"])
    path = folder / "captions.json"
    path.write_text(json.dumps(captions), encoding="utf-8")
    return path, systems


if __name__ == "__main__":
    main()
