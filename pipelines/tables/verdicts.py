"""What was measured of a table's rows: paired differences to ours, the verdict on each claim, and all of it
as metrics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.eval.comparisons.paired import (
    Difference,
    Verdict,
    all_of,
    better,
    not_worse,
    picture_difference,
    seed_difference,
)
from pipelines.runner.params import ParameterError
from pipelines.tables.measurements import ModelValues, measured_seeds, read_seed
from pipelines.tables.table import OURS, Claim, Comparison, Row, Samplers, Table

NO_FIGURE = {"value": None, "reason": "these data have no such figure"}


@dataclass(frozen=True)
class PictureValues:
    """Values of single pictures. ids: of the pictures that have any. values: float64 [seeds, pictures,
    parts], NaN where a picture lacks a part."""

    ids: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class RowValues:
    """What was measured of a row. parameters: of all its models. values: by column, one for each seed.
    reasons: by column, why there are none. pictures: by column that is a mean over pictures. measured_by: by
    column, the tokens or networks."""

    parameters: int
    values: Mapping[str, Sequence[float]]
    reasons: Mapping[str, str]
    pictures: Mapping[str, PictureValues]
    measured_by: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Judged:
    """A comparison and what came of it. difference: ours, or the row `of`, - the other row, positive where ours is better; None
    where a figure is missing."""

    comparison: Comparison
    difference: Difference | None
    verdict: Verdict


@dataclass(frozen=True)
class Results:
    """All that was found of a table. differences: by row but ours and column, the row minus ours. claims: by
    name."""

    seeds: Sequence[int]
    rows: Mapping[str, RowValues]
    differences: Mapping[str, Mapping[str, Difference | None]]
    claims: Mapping[str, Sequence[Judged]]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """On each claim."""
        return {name: verdict_of(judged) for name, judged in self.claims.items()}


def results_of(table: Table, wanted: Sequence[int]) -> Results:
    """What the measurements of the wanted seeds say, as far as they are finished.

    Raises ParameterError where no seed is finished, and where rows were not measured alike.
    """
    seeds = measured_seeds(table, wanted)
    measured = [read_seed(table, seed) for seed in seeds]
    rows = {name: read_row(table, row, measured) for name, row in table.rows.items()}
    check_alike(table, rows)
    differences = {
        name: {column: difference(row, rows[OURS], column) for column in table.columns}
        for name, row in rows.items()
        if name != OURS
    }
    claims = {name: judge(table, claim, rows) for name, claim in table.claims.items()}
    return Results(seeds, rows, differences, claims)


def measure_again(table: Table) -> str:
    """What mends measurements that do not fit each other."""
    return f"remove {table.measured}, and `{table.command}` measures all models again"


# Reading


def read_row(table: Table, row: Row, seeds: Sequence[Mapping[str, ModelValues]]) -> RowValues:
    """Figures and values of pictures of one row, from all models of each seed."""
    measured = {model: [models[model] for models in seeds] for model in dict.fromkeys(row.models.values())}
    values: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    pictures: dict[str, PictureValues] = {}
    measured_by: dict[str, frozenset[str]] = {}
    for column, what in table.columns.items():
        if (kind := column.partition(".")[0]) not in row.models:
            continue
        of_seeds = measured[row.models[kind]]
        records = [each.figures.get(column, NO_FIGURE) for each in of_seeds]
        missing = [record["reason"] for record in records if record["value"] is None]
        if missing:
            reasons[column] = missing[0] or "not measured"
            continue
        values[column] = [record["value"] for record in records]
        measured_by[column] = frozenset(record["model"] for record in records if record.get("model"))
        if what.over == "pictures":
            pictures[column] = picture_values(table, of_seeds, what.parts or (column,))
    counted = {model for kind, model in row.models.items() if not table.counted or kind in table.counted}
    parameters = sum(of_seeds[0].parameters for model, of_seeds in measured.items() if model in counted)
    return RowValues(parameters, values, reasons, pictures, measured_by)


def picture_values(table: Table, of_seeds: Sequence[ModelValues], parts: Sequence[str]) -> PictureValues:
    """Values of the pictures that were captioned, or painted for, whichever the figures `parts` are about.

    Raises ParameterError where seeds were measured on different pictures.
    """
    ids: list[tuple[str, ...]] = []
    values: list[np.ndarray] = []
    for each in of_seeds:
        own = [name for name in parts if name in each.pictures.column_names]
        every = np.stack([each.pictures[name].to_numpy().astype(np.float64) for name in own], 1)
        has_any = ~np.isnan(every).all(1)
        ids.append(tuple(each.pictures["image_id"].filter(has_any).to_pylist()))
        values.append(every[has_any])
        if ids[-1] != ids[0] or values[-1].shape != values[0].shape:
            raise ParameterError(
                f"{table.measured}: {each.name} was measured on other pictures than {of_seeds[0].name}; "
                f"{measure_again(table)}"
            )
    return PictureValues(ids[0], np.stack(values))


def check_alike(table: Table, rows: Mapping[str, RowValues]) -> None:
    """Raise ParameterError where rows were measured on different pictures, or in different ways, such as some
    before Java was installed and the others after."""
    for column, what in table.columns.items():
        ways = frozenset[str]().union(*(row.measured_by.get(column, ()) for row in rows.values()))
        if len(ways) > 1:
            raise ParameterError(
                f"{table.measured}: {what.title} was measured in different ways ({'; '.join(sorted(ways))}); "
                f"{measure_again(table)}"
            )
        if len({row.pictures[column].ids for row in rows.values() if column in row.pictures}) > 1:
            raise ParameterError(
                f"{table.measured}: rows were measured on different pictures ({what.title}); "
                f"{measure_again(table)}"
            )


def read_samplers(table: Table, samplers: Samplers) -> dict[str, dict[str, dict[str, Any]]]:
    """Records of figures by sampler and name, of the samplers that have run."""
    found = {}
    for name in samplers.titles:
        path = Path(table.folder) / "samplers" / f"{name}.json"
        if not path.is_file():
            continue
        records = json.loads(path.read_text(encoding="utf-8"))
        found[name] = {record["name"]: record for record in records if record["name"] in samplers.columns}
    return found


# Statistics


def difference(row: RowValues, ours: RowValues, column: str) -> Difference | None:
    """The row minus ours; None where a figure is missing."""
    if column not in row.values or column not in ours.values:
        return None
    if column in row.pictures:
        return picture_difference(row.pictures[column].values, ours.pictures[column].values)
    return seed_difference(row.values[column], ours.values[column])


def judge(
    table: Table,
    claim: Claim,
    rows: Mapping[str, RowValues],
) -> list[Judged]:
    """The verdict of each comparison of a claim."""
    judged = []
    for comparison in claim.comparisons:
        found = difference(rows[comparison.row], rows[comparison.of], comparison.column)
        if found is None:
            judged.append(Judged(comparison, None, "undecided"))
            continue
        gain = -found if table.columns[comparison.column].higher_is_better else found
        if comparison.wanted == "better":
            verdict = better(gain)
        else:
            share = comparison.margin * scale_of(rows, comparison) if comparison.margin else 0.0
            verdict = not_worse(gain, share + comparison.points)
        judged.append(Judged(comparison, gain, verdict))
    return judged


def scale_of(rows: Mapping[str, RowValues], comparison: Comparison) -> float:
    """The other row's mean, of which margins are shares."""
    return abs(statistics.mean(rows[comparison.row].values[comparison.column])) or 1.0


def verdict_of(judged: Sequence[Judged]) -> Verdict:
    """Of a claim, from those of its comparisons that count."""
    return all_of([each.verdict for each in judged if each.comparison.counts])


# Writing


def flat(results: Results) -> dict[str, float | str]:
    """Names to numbers, and the claims' verdicts: `ROW.COLUMN.mean`, `.std`, and `.difference`, `.low`,
    `.high` to ours."""
    found: dict[str, float | str] = {f"claim.{name}": verdict for name, verdict in results.verdicts.items()}
    found["seeds"] = len(results.seeds)
    for name, row in results.rows.items():
        found[f"{name}.parameters"] = row.parameters
        for column, values in row.values.items():
            found[f"{name}.{column}.mean"] = statistics.mean(values)
            if len(values) > 1:
                found[f"{name}.{column}.std"] = statistics.stdev(values)
            gap = results.differences.get(name, {}).get(column)
            if gap is not None:
                bounds = {"difference": gap.value, "low": gap.low, "high": gap.high}
                found |= {
                    f"{name}.{column}.{key}": value for key, value in bounds.items() if value is not None
                }
    return found


def flat_samplers(samplers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float | str]:
    """The same for samplers: `samplers.NAME.COLUMN`."""
    return {
        f"samplers.{name}.{column}": record["value"]
        for name, records in samplers.items()
        for column, record in records.items()
        if record["value"] is not None
    }
