"""A page that compares trainings: claims with what decides them, tables, and paintings side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.eval.report.charts import curves
from diptych.eval.report.rendering import write_page

Cell = tuple[str, str]
"""A value and what stands below it, smaller."""


@dataclass(frozen=True)
class ComparedFigure:
    """One comparison of a claim as text. verdict: "holds", "fails" or "undecided"."""

    name: str
    rule: str
    ours: str
    other: str
    difference: str
    verdict: str


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, its verdict, its comparisons, and likely reasons where it does not hold."""

    text: str
    verdict: str
    comparisons: Sequence[ComparedFigure]
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class ComparisonTable:
    """columns: with the one of the rows' names. rows: a name and a cell for each of the other columns."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Gallery:
    """Pictures and texts side by side. columns: their names, that of the rows' texts first. rows: a text, such as a prompt, and for
    each other column its name and a picture as PNG or JPEG, a text, or None."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, bytes | str | None]]]]


@dataclass(frozen=True)
class ClaimsPage:
    """What the page shows; what is empty is left out. curves: names, and the rows of a training's history (`step` and what was
    recorded)."""

    title: str
    note: str
    tables: Sequence[ComparisonTable]
    claims: Sequence[JudgedClaim] = ()
    galleries: Sequence[Gallery] = ()
    curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]] = ()


def write_claims_page(page: ClaimsPage, path: Path) -> None:
    """Write the self-contained page to `path`, whole or not at all; all text from outside is escaped."""
    write_page(path, "diptych.eval.comparisons", "claims_page.html.j2", {"curves": curves}, page=page)
