"""The last stage of a table: its metrics, and the page with its claims, from what `measured` has left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.comparisons.claims_page import (
    Cell,
    ClaimsPage,
    ComparedFigure,
    ComparisonTable,
    Gallery,
    JudgedClaim,
    write_claims_page,
)
from diptych.eval.comparisons.paired import Difference
from pipelines.tables.item import TableItem, run
from pipelines.tables.measurements import measured_where, ran_here
from pipelines.tables.table import OURS, Claim, Column, PaperTable, Samplers, Table, Texts
from pipelines.tables.verdicts import (
    Judged,
    Results,
    RowValues,
    flat,
    flat_samplers,
    measure_again,
    read_samplers,
    results_of,
    scale_of,
    verdict_of,
)

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams

RULE = (
    "Every verdict is computed from the intervals by the rule that stands beside it. A claim holds when all "
    "of its comparisons hold and fails when one fails, that is, when a whole interval is on the wrong side; "
    "otherwise it is undecided. A claim's differences are positive where the first is better."
)


def main(item: TableItem, section: TableParams) -> None:
    """Write the table's metrics and page, and the metrics of its samplers."""
    table, stage = item.table, item.stage
    results = results_of(table, section.seeds)
    stage.write_metrics(table.metrics, flat(results))
    tables = [measured_table(table, results, section)]
    if table.paper is not None:
        tables.append(paper_table(table, table.paper))
    if table.samplers is not None:
        samplers = read_samplers(table, table.samplers)
        stage.write_metrics(table.samplers.metrics, flat_samplers(samplers))
        tables.append(sampler_table(table, table.samplers, samplers))
    with stage.write(table.page) as path:
        write_claims_page(page(table, results, section, tables), path)
    for name, verdict in results.verdicts.items():
        print(f"claim.{name}: {verdict}")


def page(
    table: Table, results: Results, section: TableParams, tables: Sequence[ComparisonTable]
) -> ClaimsPage:
    """The page: claims, the tables, paintings of the first seed that ran here."""
    title = table.title
    waiting = [seed for seed in section.seeds if seed not in results.seeds]
    if waiting:
        title += f" (seeds {', '.join(map(str, waiting))} are not finished)"
    here = [seed for seed in results.seeds if ran_here(table, seed)]
    galleries = [paintings(table, seed) for seed in here[:1] if table.gallery]
    galleries += [texts(table, table.texts, seed) for seed in here[:1] if table.texts is not None]
    return ClaimsPage(
        title,
        " ".join(filter(None, (table.introduction, RULE, table.caveat))),
        tables,
        [
            claim_shown(table, table.claims[name], judged, results.rows)
            for name, judged in results.claims.items()
        ],
        galleries,
    )


def measured_table(table: Table, results: Results, section: TableParams) -> ComparisonTable:
    """The table itself."""
    seeds, rows = results.seeds, results.rows

    def count(kind: str) -> int:
        of_kind = [of for name, of in rows[OURS].pictures.items() if name.startswith(f"{kind}.")]
        return max((len(of.ids) for of in of_kind), default=0)

    pictures = " and ".join(f"{count(kind):,} {done}" for kind, done in table.done.items())
    note = (
        f"{len(seeds)} trainings of every row, seeds {', '.join(map(str, seeds))}, on {pictures} pictures"
        f"{section.conditions}: mean ± standard deviation over seeds; below, the difference to ours on the "
        "same seeds and pictures with its 95% interval, for seeds and pictures like these."
    )
    for seed in seeds:
        if not ran_here(table, seed):
            note += f" Seed {seed} ran elsewhere: {measured_where(table, seed)}."
    if table.note:
        note += f" {table.note}"
    missing = {
        table.columns[column].title: reason for row in rows.values() for column, reason in row.reasons.items()
    }
    if missing:
        note += " Not run: " + "; ".join(f"{title}: {reason}" for title, reason in missing.items()) + "."
        note += f" Where that has changed, {measure_again(table)}."
    return ComparisonTable(
        "Measured here",
        note,
        ["", "parameters", *(column.heading for column in table.columns.values())],
        [
            (
                table.rows[name].title,
                [
                    (f"{row.parameters / 1e6:.2f}M", ""),
                    *(
                        shown(row, results.differences.get(name, {}).get(column), column, what)
                        for column, what in table.columns.items()
                    ),
                ],
            )
            for name, row in rows.items()
        ],
    )


def paper_table(table: Table, paper: PaperTable) -> ComparisonTable:
    """What the paper has."""
    formats = list(paper.columns.values())
    return ComparisonTable(
        paper.title,
        paper.note,
        ["", *paper.columns],
        [
            (
                table.rows[name].title,
                [
                    ("–" if value is None else how.format(value), "")
                    for how, value in zip(formats, values, strict=True)
                ],
            )
            for name, values in paper.rows.items()
        ],
    )


def sampler_table(
    table: Table, samplers: Samplers, measured: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> ComparisonTable:
    """The samplers that have run."""

    def cell(records: Mapping[str, Mapping[str, Any]], column: str) -> Cell:
        record, what = records.get(column), samplers.columns[column]
        if record is None or record["value"] is None:
            return "–", ""
        bounds = [record["low"], record["high"]]
        below = "" if None in bounds else " .. ".join(number(bound, what) for bound in bounds)
        return number(record["value"], what), below

    note = samplers.note
    missing = [title for name, title in samplers.titles.items() if name not in measured]
    if missing:
        note += f" Not run: {', '.join(missing)}; `{table.command}` runs them."
    return ComparisonTable(
        samplers.title,
        note,
        ["", *(column.heading for column in samplers.columns.values())],
        [
            (samplers.titles[name], [cell(records, column) for column in samplers.columns])
            for name, records in measured.items()
        ],
    )


def shown(row: RowValues, gap: Difference | None, column: str, what: Column) -> Cell:
    """Mean and deviation of a cell, and below them the difference to ours."""
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


def claim_shown(
    table: Table, claim: Claim, judged: Sequence[Judged], rows: Mapping[str, RowValues]
) -> JudgedClaim:
    """A claim as text, with a likely reason for every comparison that keeps it from holding."""
    figures, reasons = [], []
    for each in judged:
        comparison, what = each.comparison, table.columns[each.comparison.column]
        name = f"{what.title}, {table.rows[comparison.row].title}"
        if comparison.of != OURS:
            name = (
                f"{what.title}, {table.rows[comparison.of].title} against {table.rows[comparison.row].title}"
            )
        least = (
            f"{comparison.points * what.scale:g} points"
            if comparison.points
            else f"{comparison.margin:.1%} of it"
        )
        rule = {
            "not worse": f"at most {least} worse",
            "better": "better: the interval excludes zero",
        }[comparison.wanted]
        rule += "" if comparison.counts else "; not counted"
        cells = [
            number(statistics.mean(row.values[comparison.column]), what)
            if comparison.column in row.values
            else "–"
            for row in (rows[comparison.of], rows[comparison.row])
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
    who = "ours" if each.comparison.of == OURS else "it"
    told = f"{who} is {abs(gain):.1%} {'better' if gain > 0 else 'worse'}, within ± {width:.1%}"
    if abs(gain) < width:
        return f"{told}: too few seeds or pictures to tell."
    likely = claim.likely.get((each.comparison.column, each.comparison.row))
    return f"{told}. Likely, {likely}." if likely else f"{told}."


def paintings(table: Table, seed: int) -> Gallery:
    """Prompts, and what the rows have painted of them; the real picture first."""
    import pyarrow.parquet as pq

    def read(folder: Path) -> list[dict[str, Any]]:
        return pq.read_table(folder / "examples.parquet").to_pylist()

    painted = {
        row.title: read(table.measured / f"{row.models[table.gallery]}-{seed}")
        for row in table.rows.values()
        if table.gallery in row.models
    }
    first = painted[table.rows[OURS].title]
    shown = [
        (
            prompt["prompt"],
            [
                ("real", prompt["real"]),
                *((title, rows[place]["painted"]) for title, rows in painted.items()),
            ],
        )
        for place, prompt in enumerate(first)
        if prompt["prompt"] is not None
    ]
    note = f"The first {len(shown)} captions of the test split, painted by the models of seed {seed}."
    return Gallery("Paintings side by side", note, ["caption", "real", *painted], shown)


def texts(table: Table, what: Texts, seed: int) -> Gallery:
    """Pictures and what the model of a seed has written of each."""
    import pyarrow.parquet as pq

    rows = pq.read_table(Path(table.folder) / what.file.format(seed=seed)).to_pylist()
    columns = [name for name in rows[0] if name not in ("image_id", "real")] if rows else []
    shown = [
        (row["image_id"], [("real", row["real"]), *((name, row[name]) for name in columns)]) for row in rows
    ]
    return Gallery(what.title, what.note, ["picture", "real", *columns], shown)


if __name__ == "__main__":
    run("page", (), main)
