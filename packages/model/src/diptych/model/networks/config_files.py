"""Configs of networks in JSON files: one reader, whose messages name the file and the key."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from diptych.model.errors import UserError

CONFIG_FOLDER = Path(__file__).parent / "configs"
Config = TypeVar("Config")


def read_config_file(config_class: type[Config], file: Path, kind: str, **changes: Any) -> Config:
    """The config, a dataclass, in the JSON ``file``, with ``changes``; ``kind`` says what has it, such as "image generator".

    Raises:
        UserError: the file is missing or no JSON object, or a key is unknown, missing or wrong.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such {kind} config") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: the config of an {kind} is a JSON object")
    if isinstance(values.get("transformer"), dict):  # that of a packaged model (diptych.model.packaged)
        values = values["transformer"]
    values |= changes
    known = {field.name: field.default is MISSING for field in fields(config_class)}  # type: ignore[arg-type]
    for key in sorted(values.keys() ^ known.keys()):
        if key in values or known[key]:
            raise UserError(f"{file}: {kind} key {key!r} {'is unknown' if key in values else 'is missing'}")
    try:
        return config_class(**values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def check_fields(config: Any, kind: str) -> None:
    """Raise a UserError, which begins with ``kind``, unless the whole numbers of a config, a dataclass, are from 1 on, its numbers in
    [0, 1) and its choices true or false."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "int" and (type(value) is not int or value < 1):
            raise UserError(f"{kind}: {field.name} must be a whole number from 1 on, not {value!r}")
        if field.type == "bool" and type(value) is not bool:
            raise UserError(f"{kind}: {field.name} must be true or false, not {value!r}")
        if field.type == "float" and not (type(value) in (int, float) and 0 <= value < 1):
            raise UserError(f"{kind}: {field.name} must be in [0, 1), not {value!r}")


def config_text(config: Any) -> str:
    """What :func:`read_config_file` reads."""
    return json.dumps(asdict(config), indent=2) + "\n"
