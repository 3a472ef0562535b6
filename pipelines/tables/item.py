"""Runs one item of a table, as pipelines/runner/stage.py runs a stage: it decides how an item runs, not what
it computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipelines.runner import stage as stages
from pipelines.runner.errors import Mends, one_line_errors
from pipelines.runner.items import find_item, listed_values
from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.stage import UNFINISHED_STORE, Stage
from pipelines.runner.threads import end_when, prepare_process
from pipelines.tables.table import Table, data_of, read_table

T = TypeVar("T")
# the process that runs the items: its number, in their environment
DRIVER_VARIABLE = "DIPTYCH_TABLE_DRIVER"


@dataclass(frozen=True)
class TableItem:
    """A running item. stage: its seed is the item's where it has one, else the pipeline's. values: what its
    command says: row, seed. deps: what its pipeline file lists."""

    table: Table
    stage: Stage
    values: Mapping[str, str]
    deps: tuple[str, ...]

    @property
    def unfinished(self) -> Path:
        """Where it may keep what nobody needs after it."""
        return UNFINISHED_STORE / self.table.folder

    def path(self, name: str) -> str:
        """`name` in the table's folder."""
        return f"{self.table.folder}/{name}"


def mends(table: str) -> Mends:
    """What messages about a table tell to do, where a stage's own would say `dvc repro`."""
    command = f"make {table.replace('_', '-')}"
    return Mends(
        command,
        f"run fewer items side by side (`{command} JOBS=1`), or close other programs",
    )


def embeddings(table: Table) -> Path:
    """What networks made of pictures, by the pictures' content, shared by all items."""
    return UNFINISHED_STORE / table.folder / "embeddings"


def run(kind: str, keys: tuple[str, ...], main: Callable[[TableItem, Any], None]) -> None:
    """Run `python -m pipelines.tables.<kind> TABLE VALUE ...`, a value of the item for each of its `keys`.

    `main` gets the item and the table's section of params.yaml. What it cost is an output too:
    costs/<item>.json in the table's folder.
    """
    name, *values = sys.argv[1:] or ("",)
    if DRIVER_VARIABLE in os.environ:
        # another driver must not meet this item at the same checkpoints
        end_when(has_ended(int(os.environ[DRIVER_VARIABLE])))
    with one_line_errors(f"{kind} {'-'.join(values)}" if values else name or kind, mends(name)):
        if not name or len(values) != len(keys):
            raise ParameterError(
                f"usage: python -m pipelines.tables.{kind} {' '.join(('TABLE', *keys)).upper()}"
            )
        table, params = read_table(name), read_params()
        item = read_item(kind, table, dict(zip(keys, values, strict=True)), params)
        prepare_process(item.stage.threads)
        provided = provided_by(item.stage.machine, item.stage.seed)
        main(item, read_section(table.section, table.name, params, provided=provided))
        cost = item.stage.name.removeprefix(f"{table.folder}/").replace("@", "_")
        item.stage.write_metrics(item.path(f"costs/{cost}.json"), stages.cost_so_far())
        item.stage.forget_training()  # last: the same command goes on from it where a write fails


def has_ended(number: int) -> Callable[[], bool]:
    """Ask whether the process that has this number now has ended. One that nobody waits for has, though it is
    still listed; and another process that gets its number later is not it."""
    import psutil

    try:
        process = psutil.Process(number)
    except psutil.NoSuchProcess:
        return lambda: True

    def ended() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return ended


def read_item(kind: str, table: Table, values: Mapping[str, str], params: Mapping[str, Any]) -> TableItem:
    """The item whose command has these values. Raises ParameterError where one of them, such as the name of a
    row, or the parameter file is wrong."""
    command = ["python", "-m", f"pipelines.tables.{kind}", table.name]
    item = find_item(table.pipeline, command, values, params)
    seed = int(values["seed"]) if "seed" in values else read_section(int, "seed", params)
    stage = Stage(
        f"{table.folder}/{item.name}",
        seed,
        # several items run side by side, and each would ask for the whole cluster
        replace(read_section(Machine, "machine", params), ray_address=None),
        listed_values(item, params),
        table.pipeline,
        item.values,
    )
    return TableItem(table, stage, values, item.deps)


def read_entry(kind: type[T], table: Table, name: str, key: str) -> T:
    """What the table's data say under `key` of the dict `name`, such as CHANGES: a checked `kind`.

    Raises ParameterError where there is no such key, and for what is unknown or ill-typed in it, by file, key
    and field.
    """
    entries: Mapping[str, Any] = getattr(data_of(table.name), name)
    if key not in entries:
        raise ParameterError(f"{table.data}: {name} has no {key} (known: {', '.join(entries)})")
    return read_section(kind, f"{name}.{key}", {f"{name}.{key}": entries[key]}, table.data)


def only_one_named(paths: Sequence[str], beginning: str) -> Path:
    """The path of `paths` whose last part begins so, such as a model of whatever table. ValueError where it is not one."""
    (found,) = [path for path in paths if Path(path).name.startswith(beginning)]
    return Path(found)


def only_one_in(paths: Sequence[str], folder: str) -> Path:
    """The path of `paths` that lies in `folder`, such as the model that an item starts from. ValueError where
    it is not one."""
    (found,) = [path for path in paths if Path(path).parent == Path(folder)]
    return Path(found)
