"""Typed sections of params.yaml: every key is checked against a frozen dataclass before a stage does any work."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from diptych.eval.errors import UserError as EvalUserError
from diptych.features.errors import UserError as FeaturesUserError
from diptych.model.errors import UserError as ModelUserError

PACKAGE_ERRORS = (EvalUserError, FeaturesUserError, ModelUserError)
PARAMS_FILE = Path("params.yaml")
T = TypeVar("T")


class ParameterError(Exception):
    """A wrong parameter; the message names the file, the key path and the expected type."""


@dataclass(frozen=True)
class Machine:
    """How and where a run happens, as opposed to what it computes.

    No stage lists this section in dvc.yaml: a colleague with more cores or a GPU gets the same stages up to date.

    threads: threads of this process for tensor work; "auto" takes every core this process may use.
    workers: Ray actors of the extract stage; "auto" takes one a core or GPU; 0 works in the stage's process.
    device: "cpu", "mps", "cuda", "cuda:1", ...; "auto" takes CUDA where there is a device.
    precision: "float32", "bfloat16"; "auto" takes bfloat16 where the hardware multiplies it natively.
    checkpoint_seconds: wall time between two savings of a training's state.
    feature_store: folder that keeps extracted features by key; share it between clones to extract once.
    processes: processes that share the steps of the image generator's and the transformer's trainings, and its threads; "auto"
        takes one a GPU; on a CPU two, as far as threads and memory go.
    ray_address: of a running Ray cluster ("auto", "host:6379"), whose nodes see this folder under the same path: extraction,
        trainings, generation and the networks that look at pictures run there; null: on this machine.
    shards: address that shards are read from in the place of data/shards, such as s3://bucket/folder; null: they are here.
    shards_cache: folder that keeps what was read from there; on a cluster one that each node has for itself.
    features_at: address that features which the store lacks are brought from, such as s3://bucket/features; null: they are extracted.
    compile: run the losses of token-level training through torch.compile; minutes at the start, no gain on CPUs.
    """

    threads: int | Literal["auto"]
    workers: int | Literal["auto"]
    device: str
    precision: Literal["auto", "float32", "bfloat16"]
    checkpoint_seconds: float
    feature_store: str
    processes: int | Literal["auto"] = 1
    ray_address: str | None = None
    shards: str | None = None
    shards_cache: str = ".cache/shards"
    features_at: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for key, least in (("threads", 1), ("workers", 0), ("processes", 1)):
            value = getattr(self, key)
            if value != "auto" and value < least:
                raise ValueError(f"{key} must be at least {least} or auto, is {value}")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds must be 0 or more, is {self.checkpoint_seconds}")
        for key in ("feature_store", "ray_address", "shards", "shards_cache", "features_at"):
            if getattr(self, key) == "":
                raise ValueError(f"{key} is empty: name a place, or leave the line out for the default")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be auto, cpu, mps, cuda or cuda:N, is {self.device}")
        # its database cannot be shared by machines
        if (
            self.ray_address is not None
            and self.shards is not None
            and not Path(self.shards_cache).is_absolute()
        ):
            raise ValueError(
                f"shards_cache must be an absolute path on each node's own disk where both ray_address and shards are set, is {self.shards_cache}"
            )


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ParameterError for the least of a command line's `--seeds`, if it is no seed."""
    if min(seeds) < 0:
        raise ParameterError(f"--seeds: seeds are whole numbers from 0 on, not {min(seeds)}")


def provided_by(machine: Machine, seed: int) -> dict[str, Any]:
    """What a run sets in every section that has a field of the name, and no section may."""
    return {
        "seed": seed,
        "precision": machine.precision,
        "checkpoint_seconds": machine.checkpoint_seconds,
        "ray_address": machine.ray_address,
    }


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The whole parameter file as plain dicts.

    Raises ParameterError where the file is missing, cannot be read, is not YAML, or is no mapping.
    """
    # ruamel reads YAML 1.2 as DVC does: PyYAML would read `5e-5` as a string and DVC would track a float.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        params = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise ParameterError(f"{path} is missing: write it with `make profile PROFILE=toybox`") from None
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ParameterError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(params, dict):
        raise ParameterError(f"{path}: expected a mapping of sections, found {_spell(params)}")
    return params


def read_section(
    kind: type[T],
    key: str,
    params: Mapping[str, Any],
    path: Path = PARAMS_FILE,
    provided: Mapping[str, Any] | None = None,
) -> T:
    """Section `key` of `params` as an instance of `kind`, a dataclass or any type that `convert` knows.

    provided: fields, by name, that the run sets and no section may (`provided_by`).
    Raises ParameterError for a missing section and for everything inside it that is unknown, missing or ill-typed.
    """
    if key not in params:
        raise ParameterError(f"{path}: section {key!r} is missing: `make profile PROFILE=toybox` restores it")
    return _Converter(path, provided or {}).convert(kind, params[key], key)


@dataclass(frozen=True)
class _Converter:
    path: Path
    provided: Mapping[str, Any]

    def convert(self, kind: Any, value: Any, key: str) -> Any:
        """`value`, as read from YAML, as type `kind`; ParameterError names the file, `key` and the expected type.

        Knows dataclasses (unknown and missing keys are errors), int, float (an int is a float), bool, str, Path,
        None, Literal, unions, list[T], tuple[T, ...] and tuple[T, U], dict[str, T].
        """
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        wrong = ParameterError(f"{self.path}: {key}: expected {_name(kind)}, found {_spell(value)}")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self._dataclass(kind, value, key)
        if kind is Any:
            return value
        if origin is Literal:
            # compared with their types, because True == 1
            if any(type(value) is type(choice) and value == choice for choice in arguments):
                return value
            raise wrong
        if origin in (typing.Union, types.UnionType):
            sections = [choice for choice in arguments if dataclasses.is_dataclass(choice)]
            if isinstance(value, dict) and sections:
                # the dataclass that shares most keys is meant: say what is wrong inside it, not that none fits
                shared = [
                    len({field.name for field in dataclasses.fields(s)} & value.keys()) for s in sections
                ]
                return self.convert(sections[shared.index(max(shared))], value, key)
            for choice in arguments:
                try:
                    return self.convert(choice, value, key)
                except ParameterError:
                    continue
            raise wrong
        if origin in (list, tuple) and isinstance(value, list):
            if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
                if len(value) != len(arguments):
                    raise wrong
                kinds: tuple[Any, ...] = arguments
            else:
                kinds = (arguments[0],) * len(value)
            items = (
                self.convert(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
            )
            return origin(items)
        if origin is dict and isinstance(value, dict):
            return {
                str(name): self.convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()
            }
        if kind is float and type(value) is int:
            return float(value)
        if kind is Path and type(value) is str:
            return Path(value)
        if kind in (type(None), None) and value is None:
            return None
        if kind in (int, float, str, bool) and type(value) is kind:
            return value
        raise wrong

    def _dataclass(self, kind: Any, value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            raise ParameterError(f"{self.path}: {key}: expected a section with keys, found {_spell(value)}")
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        for name in value:
            if name not in fields:
                known = ", ".join(sorted(fields))
                raise ParameterError(f"{self.path}: {key}.{name}: unknown key (known here: {known})")
            if name in self.provided:
                raise ParameterError(
                    f"{self.path}: {key}.{name}: not set here but by the run, for all stages alike"
                )
        values = {name: self.provided[name] for name in fields if name in self.provided}
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in value and name not in values:
                raise ParameterError(f"{self.path}: {key}.{name}: missing, expected {_name(hints[name])}")
        for name, item in value.items():
            values[name] = self.convert(hints[name], item, f"{key}.{name}")
        try:
            return kind(**values)
        except (ValueError, *PACKAGE_ERRORS) as error:  # a dataclass checks its own ranges in __post_init__
            raise ParameterError(f"{self.path}: {key}: {error}") from None


def _name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(choice) for choice in arguments)
    if origin is None:
        if kind is type(None):
            return "null"
        return (
            "a section with keys" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind))
        )
    return str(kind).replace("typing.", "")


def _spell(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
