"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

_RANK = {"ok": 0, "note": 1, "problem": 2}


@dataclass(frozen=True)
class Finding:
    """What one check found: level `ok`, `note` or `problem`, and a line that says what is and what to do."""

    level: str
    text: str


def ok(text: str) -> Finding:
    """All is well."""
    return Finding("ok", text)


def note(text: str) -> Finding:
    """A run is possible; something could be better."""
    return Finding("note", text)


def problem(text: str) -> Finding:
    """This prevents a run."""
    return Finding("problem", text)


def together(findings: Iterable[Finding]) -> Finding:
    """One finding of several: the worst level, and the texts of that level (all of them where all is well)."""
    found = list(findings)
    worst = max((finding.level for finding in found), key=_RANK.__getitem__)
    return Finding(worst, "; ".join(finding.text for finding in found if finding.level == worst))


def one_line(error: object) -> str:
    """A message, such as an exception's, without its line breaks and with at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def guarded(check: Callable[[], Finding]) -> Finding:
    """A check that cannot be made is itself a finding, and the others go on."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001
        return note(f"could not be examined ({type(error).__name__}: {one_line(error)})")
