"""The items of a pipeline file: its stages, matrices expanded as DVC expands them, and the parameters that each lists."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runner.params import PARAMS_FILE, ParameterError

# `${section.key}`, `${section.list[0]}`: a value of params.yaml, or of the item
_REFERENCE = re.compile(r"\$\{([\w.\[\]]+)\}")


@dataclass(frozen=True)
class Item:
    """A stage of a pipeline file, or one item of a stage that is a matrix.

    stage: `token`. values: of the matrix, by key. command: what DVC runs. deps, outs: paths, metrics and
    plots among the outs. params: keys of params.yaml, or of another file: {file: keys}. description: the file's `desc`.
    """

    pipeline: Path
    stage: str
    values: Mapping[str, str]
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str | Mapping[str, Sequence[str]], ...] = ()
    description: str = ""

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
        return any(within(path, out) or within(out, path) for out in self.outs)


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
                    entry.get("desc", ""),
                )
            )
    return items


def find_item(
    pipeline: Path, command: Sequence[str], values: Mapping[str, str], params: Mapping[str, Any]
) -> Item:
    """The item of a pipeline file that `command VALUE ...` runs, a value for each key of its matrix.

    Raises ParameterError that names the first value that no such item has.
    """
    known = {
        tuple(words[len(command) :]): item
        for item in read_items(pipeline, params)
        if (words := item.command.split())[: len(command)] == list(command)
    }
    for place, (key, value) in enumerate(values.items()):
        found = list(dict.fromkeys(of_item[place] for of_item in known))
        if value not in found:
            raise ParameterError(f"{value}: no such {key} (known: {', '.join(found)})")
    if (wanted := tuple(values.values())) not in known:
        raise ParameterError(f"{pipeline}: no item {' '.join((*command, *wanted))}".strip())
    return known[wanted]


def listed_values(item: Item, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all parameters that an item's pipeline file lists: of params.yaml, and literals of Python
    files, which DVC reads as parameters, too."""
    found: dict[str, Any] = {}
    for listed in item.params:
        if isinstance(listed, str):
            found[listed] = value_of(params, listed)
            continue
        for file, keys in listed.items():
            module = importlib.import_module(".".join(Path(file).with_suffix("").parts))
            found |= {f"{file}:{key}": value_of(vars(module), key, file) for key in keys}
    return found


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
    for name in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
            continue
        if not isinstance(value, Mapping) or name not in value:
            mend = ": `make profile PROFILE=toybox` restores it" if file == PARAMS_FILE else ""
            raise ParameterError(f"{file}: {key} is missing{mend}")
        value = value[name]
    return value


def _paths(listed: Iterable[Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Paths of deps or outs; one with options is a mapping."""
    for each in listed:
        yield resolved(next(iter(each)) if isinstance(each, Mapping) else each, known)


def within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")
