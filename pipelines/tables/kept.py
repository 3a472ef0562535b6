"""What was measured of one seed of a table as one file, metrics/measured/TABLE-SEED.parquet: small enough for git, so that the seeds
of a table may run on several machines, or on several days."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.report.labels import flatten
from pipelines.runner.items import listed_values
from pipelines.runner.stage import commit
from pipelines.runner.writing import remove, writing
from pipelines.tables.items import TableItems, shared_stages
from pipelines.tables.measurements import MADE, MODELS, PARAMS, elsewhere, read_seed
from pipelines.tables.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = Path("metrics/measured")


def kept_file(table: Table, seed: int) -> Path:
    """Where a seed's measurements are kept."""
    return FOLDER / f"{table.name}-{seed}.parquet"


def keep(table: Table, plan: TableItems, seed: int, params: Mapping[str, Any]) -> None:
    """Write the file of a seed that ran here: a row for each model and picture with the figures that the table's columns are made of,
    and in the schema the figures of all pictures together, the parameters that the seed depends on, and where it ran. plan: has
    this seed's items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    models, wanted = read_seed(table, seed), figures_of(table)
    rows = pa.concat_tables(
        [named(model.pictures, name, wanted) for name, model in models.items()], promote_options="default"
    )
    figures = {
        name: {
            "parameters": model.parameters,
            "figures": [record for key, record in model.figures.items() if key in wanted],
        }
        for name, model in models.items()
    }
    metadata = {
        MODELS: json.dumps(figures),
        PARAMS: json.dumps(determining(plan, seed, params), sort_keys=True),
        MADE: f"at {commit()} on {processor()}",
    }
    with writing(str(kept_file(table, seed))) as path:
        pq.write_table(rows.replace_schema_metadata(metadata), path, compression="zstd")


def take_kept(table: Table, plan: TableItems, seed: int, params: Mapping[str, Any]) -> None:
    """Let the table have a seed that did not run here from its file, if there is one that was measured with the present parameters;
    say so where there is another. plan: has this seed's items."""
    path = kept_file(table, seed)
    if not path.is_file():
        return
    if reason := why_not_taken(path, table, determining(plan, seed, params)):
        print(f"{table.name}: {path} is left out: {reason}", flush=True)
        return
    with writing(str(elsewhere(table, seed))) as copy:
        shutil.copyfile(path, copy)


def why_not_taken(path: Path, table: Table, ours: Mapping[str, Any]) -> str:
    """What keeps the table from a file of this seed; empty where nothing does. ours: the present parameters."""
    import pyarrow.parquet as pq

    try:  # a pointer of git-lfs, a merge, half a copy
        metadata = pq.read_table(path).schema.metadata
        theirs, models = json.loads(metadata[PARAMS]), json.loads(metadata[MODELS])
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's own errors are of these
        return "it is damaged, or no file of a seed"
    if other := sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key)):
        more = f" and {len(other) - 1} more" if other[1:] else ""
        return f"it was measured with another {other[0]}{more}"
    missing = sorted(set(table.models) - set(models))
    return f"it has no {missing[0]}" if missing else ""


def forget_taken(table: Table) -> None:
    """No seed is from elsewhere, until it is taken anew: its file may be another by now, or it may run here."""
    remove(elsewhere(table, 0).parent)


def figures_of(table: Table) -> Collection[str]:
    """Names of the figures that the table's columns are, or are made of."""
    return {name for column, what in table.columns.items() for name in (column, *what.parts)}


def named(pictures: pa.Table, model: str, wanted: Collection[str]) -> pa.Table:
    """Those of its columns that are wanted, with the model's name in the first one."""
    import pyarrow as pa

    columns = ["image_id", *(name for name in pictures.column_names if name in wanted)]
    names = pa.array([model] * len(pictures)).dictionary_encode()
    return pictures.select(columns).replace_schema_metadata(None).add_column(0, "model", names)


def determining(plan: TableItems, seed: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all parameters that the items of a seed list, and the stages behind them, as JSON has them: a name for each."""
    known = [*plan.work, *shared_stages(params)]
    behind = [item for item in plan.work if item.seed == seed]
    for item in behind:  # it grows meanwhile
        makers = [each for each in known if any(map(each.makes, item.deps))]
        behind += [each for each in makers if each not in behind]
    values: dict[str, Any] = {}
    for item in behind:
        values |= flatten(listed_values(item, params))
    as_kept: dict[str, Any] = json.loads(json.dumps(values))
    return as_kept


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "an unknown processor")
