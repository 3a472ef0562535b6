"""The paper's table 1 in miniature, with intervals and a verdict on each claim, from what `measured` has left."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.eval.comparisons.claims_page import (
    Cell,
    ClaimsPage,
    ComparedFigure,
    ComparisonTable,
    JudgedClaim,
    write_claims_page,
)
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
from pipelines.runner.stage import Stage
from pipelines.tables.item import OUTPUTS, Table1Params, run
from pipelines.tables.table import (
    CLAIMS,
    COLUMNS,
    PAPER,
    PAPER_COLUMNS,
    SAMPLER_COLUMNS,
    SAMPLER_TITLES,
    TABLE,
    Claim,
    Column,
    Comparison,
    models,
)

if TYPE_CHECKING:
    import pyarrow as pa

MEASURED, SAMPLED = Path(OUTPUTS) / "measured", Path(OUTPUTS) / "samplers"
MEASURE_AGAIN = f"remove {MEASURED}, and `make table1` measures all models again"
NO_FIGURE = {"value": None, "reason": "these data have no such figure"}


@dataclass(frozen=True)
class ModelValues:
    """What `measured` has left of a model and seed. figures: records by name. pictures: a row per picture, by image_id."""

    name: str
    parameters: int
    figures: Mapping[str, Mapping[str, Any]]
    pictures: pa.Table


@dataclass(frozen=True)
class PictureValues:
    """Values of single pictures. ids: of the pictures that have any. values: float64 [seeds, pictures, parts], NaN where a picture
    lacks a part."""

    ids: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class RowValues:
    """What was measured of a row. parameters: of all its models. values: by column, one for each seed. reasons: by column,
    why there are none. pictures: by column that is a mean over pictures. measured_by: by column, the tokens or networks."""

    parameters: int
    values: Mapping[str, Sequence[float]]
    reasons: Mapping[str, str]
    pictures: Mapping[str, PictureValues]
    measured_by: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Judged:
    """A comparison and what came of it. difference: ours - the other row, positive where ours is better; None where a figure
    is missing."""

    comparison: Comparison
    difference: Difference | None
    verdict: Verdict


def main(stage: Stage, params: Table1Params) -> None:
    """Write metrics/table1.json, metrics/samplers.json and ablations/table1/index.html."""
    seeds = measured_seeds(params.seeds)
    rows = {name: read_row(name, seeds) for name in TABLE}
    check_alike(rows)
    differences = {
        name: {column: difference(row, rows["ours"], column) for column in COLUMNS}
        for name, row in rows.items()
        if name != "ours"
    }
    claims = {name: judge(claim, rows, differences) for name, claim in CLAIMS.items()}
    verdicts = {name: verdict_of(judged) for name, judged in claims.items()}
    stage.write_metrics("metrics/table1.json", flat(rows, differences, verdicts, seeds))
    samplers = read_samplers()
    stage.write_metrics(
        "metrics/samplers.json",
        {
            f"samplers.{name}.{column}": record["value"]
            for name, records in samplers.items()
            for column, record in records.items()
            if record["value"] is not None
        },
    )
    with stage.write(f"{OUTPUTS}/table1") as folder:
        shown_page = page(rows, differences, claims, seeds, params, sampler_table(samplers))
        write_claims_page(shown_page, folder / "index.html")
    for name, verdict in verdicts.items():
        print(f"claim.{name}: {verdict}")


def measured_seeds(wanted: Sequence[int]) -> list[int]:
    """The seeds of which all models are measured. Raises ParameterError where there is none."""
    found = [
        seed
        for seed in wanted
        if all((MEASURED / f"{model}-{seed}" / "figures.json").is_file() for model in models())
    ]
    if not found:
        raise ParameterError(f"{MEASURED}: no seed of {list(wanted)} has all its rows: run `make table1`")
    return found


# Reading


def read_row(name: str, seeds: Sequence[int]) -> RowValues:
    """Figures and values of pictures of one row."""
    row = TABLE[name]
    measured = {model: [read_model(model, seed) for seed in seeds] for model in row.models}
    values: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    pictures: dict[str, PictureValues] = {}
    measured_by: dict[str, frozenset[str]] = {}
    for column, what in COLUMNS.items():
        of_seeds = measured[row.captions if column.startswith("caption.") else row.paintings]
        records = [each.figures.get(column, NO_FIGURE) for each in of_seeds]
        missing = [record["reason"] for record in records if record["value"] is None]
        if missing:
            reasons[column] = missing[0] or "not measured"
            continue
        values[column] = [record["value"] for record in records]
        measured_by[column] = frozenset(record["model"] for record in records if record.get("model"))
        if what.over == "pictures":
            pictures[column] = picture_values(of_seeds, what.parts or (column,))
    parameters = sum(of_seeds[0].parameters for of_seeds in measured.values())
    return RowValues(parameters, values, reasons, pictures, measured_by)


def read_model(model: str, seed: int) -> ModelValues:
    """One model of one seed."""
    import pyarrow.parquet as pq

    folder = MEASURED / f"{model}-{seed}"
    records = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return ModelValues(
        folder.name,
        int((folder / "parameters.txt").read_text()),
        {record["name"]: record for record in records},
        pq.read_table(folder / "pictures.parquet").sort_by("image_id"),
    )


def picture_values(of_seeds: Sequence[ModelValues], parts: Sequence[str]) -> PictureValues:
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
                f"{MEASURED}: {each.name} was measured on other pictures than {of_seeds[0].name}; {MEASURE_AGAIN}"
            )
    return PictureValues(ids[0], np.stack(values))


def check_alike(rows: Mapping[str, RowValues]) -> None:
    """Raise ParameterError where rows were measured on different pictures, or in different ways, such as some before Java was
    installed and the others after."""
    for column in COLUMNS:
        ways = frozenset[str]().union(*(row.measured_by.get(column, ()) for row in rows.values()))
        if len(ways) > 1:
            raise ParameterError(
                f"{MEASURED}: {COLUMNS[column].title} was measured in different ways ({'; '.join(sorted(ways))}); {MEASURE_AGAIN}"
            )
        if len({row.pictures[column].ids for row in rows.values() if column in row.pictures}) > 1:
            raise ParameterError(
                f"{MEASURED}: rows were measured on different pictures ({COLUMNS[column].title}); {MEASURE_AGAIN}"
            )


def read_samplers() -> dict[str, dict[str, dict[str, Any]]]:
    """Records of figures by sampler and name, of the samplers that have run."""
    found = {}
    for name in SAMPLER_TITLES:
        path = SAMPLED / f"{name}.json"
        if not path.is_file():
            continue
        records = json.loads(path.read_text(encoding="utf-8"))
        found[name] = {record["name"]: record for record in records if record["name"] in SAMPLER_COLUMNS}
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
    claim: Claim,
    rows: Mapping[str, RowValues],
    differences: Mapping[str, Mapping[str, Difference | None]],
) -> list[Judged]:
    """The verdict of each comparison of a claim."""
    judged = []
    for comparison in claim.comparisons:
        found = differences[comparison.row][comparison.column]
        if found is None:
            judged.append(Judged(comparison, None, "undecided"))
            continue
        gain = -found if COLUMNS[comparison.column].higher_is_better else found
        if comparison.wanted == "better":
            verdict = better(gain)
        else:
            verdict = not_worse(gain, comparison.margin * scale_of(rows, comparison))
        judged.append(Judged(comparison, gain, verdict))
    return judged


def scale_of(rows: Mapping[str, RowValues], comparison: Comparison) -> float:
    """The other row's mean, of which margins are shares."""
    return abs(statistics.mean(rows[comparison.row].values[comparison.column])) or 1.0


def verdict_of(judged: Sequence[Judged]) -> Verdict:
    """Of a claim, from those of its comparisons that count."""
    return all_of([each.verdict for each in judged if each.comparison.counts])


# Writing


def flat(
    rows: Mapping[str, RowValues],
    differences: Mapping[str, Mapping[str, Difference | None]],
    verdicts: Mapping[str, Verdict],
    seeds: Sequence[int],
) -> dict[str, float | str]:
    """Names to numbers, and the claims' verdicts: `ROW.COLUMN.mean`, `.std`, and `.difference`, `.low`, `.high` to ours."""
    found: dict[str, float | str] = {f"claim.{name}": verdict for name, verdict in verdicts.items()}
    found["seeds"] = len(seeds)
    for name, row in rows.items():
        found[f"{name}.parameters"] = row.parameters
        for column, values in row.values.items():
            found[f"{name}.{column}.mean"] = statistics.mean(values)
            if len(values) > 1:
                found[f"{name}.{column}.std"] = statistics.stdev(values)
            gap = differences.get(name, {}).get(column)
            if gap is not None:
                bounds = {"difference": gap.value, "low": gap.low, "high": gap.high}
                found |= {
                    f"{name}.{column}.{key}": value for key, value in bounds.items() if value is not None
                }
    return found


def page(
    rows: Mapping[str, RowValues],
    differences: Mapping[str, Mapping[str, Difference | None]],
    claims: Mapping[str, Sequence[Judged]],
    seeds: Sequence[int],
    params: Table1Params,
    samplers: ComparisonTable,
) -> ClaimsPage:
    """The page: claims, our table, the paper's, paintings of the first seed."""
    captioned, painted = (
        max((len(of.ids) for name, of in rows["ours"].pictures.items() if name.startswith(kind)), default=0)
        for kind in ("caption.", "painted.")
    )
    guidance = "" if params.guidance is None else f", guidance {params.guidance:g}"
    note = (
        f"{len(seeds)} trainings of every row, seeds {', '.join(map(str, seeds))}, on {captioned:,} captioned and {painted:,} "
        f"painted pictures{guidance}: mean ± standard deviation over seeds; below, the difference to ours on the same seeds and "
        "pictures with its 95% interval, for seeds and pictures like these. B@4, METEOR and FID, figures of all pictures "
        "together, have Student's interval over seeds, for these pictures. docs/ablations.md says what few seeds can show."
    )
    missing = {
        COLUMNS[column].title: reason for row in rows.values() for column, reason in row.reasons.items()
    }
    if missing:
        note += " Not run: " + "; ".join(f"{title}: {reason}" for title, reason in missing.items()) + "."
        note += f" Where that has changed, {MEASURE_AGAIN}."
    waiting = [seed for seed in params.seeds if seed not in seeds]
    title = "Table 1 in miniature"
    if waiting:
        title += f" (seeds {', '.join(map(str, waiting))} are not finished)"
    ours = ComparisonTable(
        "Measured here",
        note,
        ["", "parameters", *(f"{c.title} {'↑' if c.higher_is_better else '↓'}" for c in COLUMNS.values())],
        [
            (
                TABLE[name].title,
                [
                    (f"{row.parameters / 1e6:.2f}M", ""),
                    *(shown(row, differences.get(name, {}).get(c), c) for c in COLUMNS),
                ],
            )
            for name, row in rows.items()
        ],
    )
    paper = ComparisonTable(
        "The paper's table 1",
        "Huang et al. 2021, on MSCOCO; FID in Inception's space, R-precision by CLIP.",
        ["", *PAPER_COLUMNS],
        [
            (TABLE[name].title, [(f"{v:.0f}M" if n == 0 else f"{v:.1f}", "") for n, v in enumerate(values)])
            for name, values in PAPER.items()
        ],
    )
    gallery = examples(seeds[0])
    return ClaimsPage(
        title,
        "The ablations of Unifying Multimodal Transformer on the data of this pipeline. Every verdict is computed from the "
        "intervals by the rule that stands beside it. A claim holds when all of its comparisons hold and fails when one "
        "fails, that is, when a whole interval is on the wrong side; otherwise it is undecided. R-precision hard is not "
        "counted: the judge itself takes many a noun and verb of real pictures for another.",
        [ours, paper, samplers],
        [claim_shown(CLAIMS[name], judged, rows) for name, judged in claims.items()],
        f"The first {len(gallery)} captions of the test split, painted by the models of seed {seeds[0]}.",
        ["real", *(row.title for row in TABLE.values())],
        gallery,
    )


def sampler_table(samplers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> ComparisonTable:
    """X-LXMERT's tables 4 and 6 in miniature."""

    def cell(records: Mapping[str, Mapping[str, Any]], column: str) -> Cell:
        record, what = records.get(column), SAMPLER_COLUMNS[column]
        if record is None or record["value"] is None:
            return "–", ""
        bounds = [record["low"], record["high"]]
        below = "" if None in bounds else " .. ".join(number(bound, what) for bound in bounds)
        return number(record["value"], what), below

    note = (
        "models/sequence on the test split, with the guidance of the table; below a figure its 95% interval over pictures. "
        "Seconds: the codes of one painting in a batch."
    )
    missing = [title for name, title in SAMPLER_TITLES.items() if name not in samplers]
    if missing:
        note += f" Not run: {', '.join(missing)}; `make table1` runs them."
    return ComparisonTable(
        "Samplers, as in X-LXMERT's tables 4 and 6",
        note,
        ["", *(f"{c.title} {'↑' if c.higher_is_better else '↓'}" for c in SAMPLER_COLUMNS.values())],
        [
            (SAMPLER_TITLES[name], [cell(records, column) for column in SAMPLER_COLUMNS])
            for name, records in samplers.items()
        ],
    )


def shown(row: RowValues, gap: Difference | None, column: str) -> Cell:
    """Mean and deviation of a cell, and below them the difference to ours."""
    what = COLUMNS[column]
    if column not in row.values:
        return "–", ""
    values = row.values[column]
    text = number(statistics.mean(values), what)
    if len(values) > 1:
        text += f" ± {number(statistics.stdev(values), what)}"
    return text, "" if gap is None else interval_shown(gap, what)


def number(value: float, what: Column, sign: str = "") -> str:
    """In the papers' scale."""
    return f"{value * what.scale:{sign}z.{what.digits}f}"


def interval_shown(gap: Difference, what: Column) -> str:
    """A difference with its interval."""
    text = number(gap.value, what, "+")
    if gap.low is not None and gap.high is not None:
        text += f" [{number(gap.low, what, '+')}, {number(gap.high, what, '+')}]"
    return text


def claim_shown(claim: Claim, judged: Sequence[Judged], rows: Mapping[str, RowValues]) -> JudgedClaim:
    """A claim as text, with a likely reason for every comparison that keeps it from holding."""
    figures, reasons = [], []
    for each in judged:
        comparison, what = each.comparison, COLUMNS[each.comparison.column]
        name = f"{what.title}, {TABLE[comparison.row].title}"
        rule = {
            "not worse": f"at most {comparison.margin:.1%} of it worse",
            "better": "better: the interval excludes zero",
        }[comparison.wanted]
        rule += "" if comparison.counts else "; not counted"
        cells = [
            number(statistics.mean(row.values[comparison.column]), what)
            if comparison.column in row.values
            else "–"
            for row in (rows["ours"], rows[comparison.row])
        ]
        gap = "not measured"
        if each.difference is not None:
            share = each.difference.value / scale_of(rows, comparison)
            gap = f"{interval_shown(each.difference, what)}, {share:+z.1%}"
        figures.append(ComparedFigure(name, rule, cells[0], cells[1], gap, each.verdict))
        if comparison.counts and each.verdict in ("fails", "undecided"):
            reasons.append(f"{name}: {reason(each, claim, rows)}")
    return JudgedClaim(claim.text, verdict_of(judged), figures, reasons)


def reason(each: Judged, claim: Claim, rows: Mapping[str, RowValues]) -> str:
    """Why a comparison may not hold."""
    if each.difference is None:
        return "it was not measured."
    if each.difference.low is None or each.difference.high is None:
        return "one seed has no interval; measure more of them."
    gain = each.difference.value / scale_of(rows, each.comparison)
    width = (each.difference.high - each.difference.low) / 2 / scale_of(rows, each.comparison)
    told = f"ours is {abs(gain):.1%} {'better' if gain > 0 else 'worse'}, within ± {width:.1%}"
    if abs(gain) < width:
        return f"{told}: too few seeds or pictures to tell."
    return f"{told}. Likely, {claim.likely[each.comparison.column, each.comparison.row]}."


def examples(seed: int) -> list[tuple[str, list[tuple[str, bytes | None]]]]:
    """Prompts, and what the rows have painted of them; the real picture first."""
    import pyarrow.parquet as pq

    tables = {
        row.title: pq.read_table(MEASURED / f"{row.paintings}-{seed}" / "examples.parquet").to_pylist()
        for row in TABLE.values()
    }
    first = tables[TABLE["ours"].title]
    return [
        (
            prompt["prompt"],
            [("real", prompt["real"]), *((title, rows[number]["painted"]) for title, rows in tables.items())],
        )
        for number, prompt in enumerate(first)
        if prompt["prompt"] is not None
    ]


if __name__ == "__main__":
    run("table1", (), main)
