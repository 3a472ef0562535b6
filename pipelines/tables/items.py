"""The items of a table, read from its dvc.yaml: matrices expanded as DVC expands them, and what each of them
needs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runner.params import PARAMS_FILE, ParameterError
from pipelines.tables.table import Table, read_table, table_names

SHARED = Path("dvc.yaml")
# `${section.key}`: a value of params.yaml, or of the item
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Item:
    """A stage of a pipeline file, or one item of a stage that is a matrix.

    stage: `token`. values: of the matrix, by key. command: what DVC runs. deps, outs: paths, metrics and
    plots among the outs. params: keys of params.yaml, or of another file: {file: keys}.
    """

    pipeline: Path
    stage: str
    values: Mapping[str, str]
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str | Mapping[str, Sequence[str]], ...] = ()

    @property
    def name(self) -> str:
        """DVC's: `token@ours-0`."""
        return f"{self.stage}@{'-'.join(self.values.values())}" if self.values else self.stage

    @property
    def target(self) -> str:
        """What `dvc repro` takes."""
        return f"{self.pipeline}:{self.name}"

    @property
    def seed(self) -> int | None:
        """None where the item is the same for all seeds."""
        return int(self.values["seed"]) if "seed" in self.values else None

    def makes(self, path: str) -> bool:
        """Whether `path` is one of the outs, lies in one, or is a folder that has one."""
        return any(_within(path, out) or _within(out, path) for out in self.outs)


@dataclass(frozen=True)
class TableItems:
    """All items of a table and some seeds.

    work: seed by seed, so that the first ones are whole early, each after those that it needs; then those
    that are the same for all seeds. last: the stage that makes the page. shared: stages of the pipeline that
    make what all these read.
    """

    work: list[Item]
    last: Item
    shared: list[str]

    def needs(self, item: Item) -> list[str]:
        """Names of the items that have to be up to date before."""
        return [other.name for other in self.work if other != item and any(map(other.makes, item.deps))]

    def shown(self, item: Item) -> list[str]:
        """What the page reads of an item."""
        return [out for out in item.outs if any(_within(out, dep) for dep in self.last.deps)]


def table_items(table: Table, params: Mapping[str, Any], seeds: Iterable[int]) -> TableItems:
    """The items of a table for these seeds. Its own are all that its dvc.yaml names; of other tables those
    that make what it needs, where they have the same folder. Raises ParameterError where a reference leads
    nowhere."""
    own = read_items(table.pipeline, params)
    last = next((item for item in own if item.name == table.name), None)
    if last is None:
        raise ParameterError(f"{table.pipeline}: no stage {table.name}, which makes the page")
    others = [other for name in table_names() if (other := read_table(name)).folder == table.folder]
    sharing = [
        item
        for other in others
        if other.name != table.name
        for item in read_items(other.pipeline, params)
        if item.name != other.name
    ]
    found, wanted = list[Item](), [item for item in own if item is not last]
    while wanted:
        found = wanted + found
        missing = [item for item in sharing if item not in found]
        wanted = [item for item in missing if any(item.makes(dep) for each in wanted for dep in each.deps)]
    work = [
        *(item for seed in seeds for item in found if item.seed == seed),
        *(item for item in found if item.seed is None),
    ]
    read = [dep for item in [*work, last] for dep in item.deps]
    shared = [stage.name for stage in read_items(SHARED, params) if any(map(stage.makes, read))]
    return TableItems(work, last, shared)


def read_items(pipeline: Path, params: Mapping[str, Any]) -> list[Item]:
    """All stages of a pipeline file, an item each for the values of a matrix, in the file's order.

    Raises ParameterError where params.yaml lacks a value that the file names.
    """
    from ruamel.yaml import YAML

    items = []
    for stage, entry in YAML(typ="safe").load(pipeline)["stages"].items():
        matrix = {key: resolved(values, params) for key, values in entry.get("matrix", {}).items()}
        for chosen in itertools.product(*matrix.values()):
            values = {key: str(value) for key, value in zip(matrix, chosen, strict=True)}
            known = {**params, "item": values}
            made = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, ())]
            items.append(
                Item(
                    pipeline,
                    stage,
                    values,
                    resolved(entry["cmd"], known),
                    tuple(_paths(entry.get("deps", ()), known)),
                    tuple(_paths(made, known)),
                    tuple(resolved(entry.get("params", []), known)),
                )
            )
    return items


def resolved(value: Any, known: Mapping[str, Any]) -> Any:
    """`value` as DVC resolves it: all `${section.key}` in it by what `known` has there."""
    if isinstance(value, Mapping):
        return {key: resolved(each, known) for key, each in value.items()}
    if isinstance(value, list):
        return [resolved(each, known) for each in value]
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return value_of(known, whole[1])
    return _REFERENCE.sub(lambda reference: str(value_of(known, reference[1])), value)


def value_of(params: Mapping[str, Any], key: str, file: Path | str = PARAMS_FILE) -> Any:
    """The value of `section.key` of a file. Raises ParameterError where there is none."""
    value: Any = params
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            mend = ": `make profile PROFILE=toybox` restores it" if file == PARAMS_FILE else ""
            raise ParameterError(f"{file}: {key} is missing{mend}")
        value = value[name]
    return value


def _paths(listed: Iterable[Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Paths of deps or outs; one with options is a mapping."""
    for each in listed:
        yield resolved(next(iter(each)) if isinstance(each, Mapping) else each, known)


def _within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")
