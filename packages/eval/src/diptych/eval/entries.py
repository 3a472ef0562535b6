"""What entries of JSON files hold, or one message that names the file and the entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.eval.errors import UserError
from diptych.eval.ids import read_id


def entry_id(value: Any, path: Path | str, where: str) -> str:
    """The id by the rule of `diptych.eval.ids`. where: the entry, as a message calls it. Raises UserError for any other value."""
    try:
        return read_id(value)
    except ValueError as error:
        raise UserError(f"{path}: {where} has the id {short(value)}: {error}; mend it") from None


def short(value: Any) -> str:
    """A value as a message shows it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
