"""Rows of an annotation file that cannot be used: a few are left out and told with their ids, many refuse the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.features.errors import UserError

MAX_BAD_SHARE = 0.01  # of a file's rows of one kind
_NAMED = 5  # ids of a kind of fault that a message names


class BadRow(ValueError):
    """Why a row cannot be used. `value` is what it has there."""

    def __init__(self, fault: str, value: Any) -> None:
        super().__init__(fault)
        self.fault, self.value = fault, value


class BadRows:
    """Counts the rows of one kind (`what`, such as "annotations") of one file, and those that are left out.

    Attributes:
        total: rows looked at; the caller counts them.
    """

    def __init__(self, path: Path | str, what: str) -> None:
        self.path, self.what, self.total = path, what, 0
        self._faults: dict[str, tuple[list[str], Any]] = {}

    def add(self, row: object, problem: BadRow) -> None:
        """Leave out a row; `row` is its id."""
        self._faults.setdefault(problem.fault, ([], problem.value))[0].append(_short(row))

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self._faults.values())

    def __str__(self) -> str:
        parts = []
        for fault, (ids, value) in self._faults.items():
            named = ", ".join(ids[:_NAMED]) + ", ..." * (len(ids) > _NAMED)
            parts.append(f"{len(ids)} {fault} (id {named}; the first is {_short(value)})")
        return "; ".join(parts)

    def check(self) -> None:
        """Raise UserError where more rows than MAX_BAD_SHARE cannot be used."""
        if len(self) > MAX_BAD_SHARE * self.total:
            raise UserError(
                f"{self.path}: {len(self)} of {self.total} {self.what} cannot be used, more than {MAX_BAD_SHARE:.0%}: "
                f"{self}; mend or remove them"
            )


def row_id(row: Any, number: int) -> object:
    """What a message calls a row: its id, or its place in the file."""
    if isinstance(row, dict) and row.get("id") is not None:
        return row["id"]
    return f"none, entry {number}"


def _short(value: object) -> str:
    try:
        text = (
            value
            if isinstance(value, str) and value.startswith(("none, entry", "none, line"))
            else repr(value)
        )
    except ValueError:  # Python writes no numbers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
