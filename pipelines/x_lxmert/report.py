"""The page of X-LXMERT: what was measured, whether pretraining helps, how it was learned, and answers to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.eval.comparisons.claims_page import (
    Cell,
    ClaimsPage,
    ComparedFigure,
    ComparisonTable,
    Gallery,
    JudgedClaim,
    write_claims_page,
)
from diptych.eval.comparisons.paired import Difference, all_of, better
from pipelines.measuring.shards import shards_of
from pipelines.reporting.answers import drawn
from pipelines.reporting.histories import read_history
from pipelines.runner.stage import Stage, run
from pipelines.x_lxmert.params import ANSWERED, FIGURES, Params

PAGE = "ablations/x_lxmert/index.html"
PLOTS = Path("plots/x_lxmert")
TITLES = {"vqa": "VQA v2", "gqa": "GQA", "nlvr2": "NLVR2"}
# what the rows of the tables are called, by what stands before the names of their figures
STARTS = {"pretrained": "pretrained", "random": "from random weights"}
SYSTEMS = {"": STARTS["pretrained"], "random.": STARTS["random"], "words_alone.": "words alone, no picture"}
NOTE = (
    "X-LXMERT (Cho et al. 2020) pretrained with masked codes, masked words, matching and questions, then fine-tuned on each "
    "task, and the same fine-tuning from random weights. 95% intervals are over pictures, with one training of each: another "
    "seed may differ by more."
)

Figures = Mapping[str, Mapping[str, Any]]


def main(stage: Stage, params: Params) -> None:
    """Write ablations/x_lxmert/index.html."""
    import pyarrow.parquet as pq

    records = json.loads(FIGURES.read_text(encoding="utf-8"))
    figures = {figure["name"]: figure for figure in records}
    answered = pq.read_table(ANSWERED).to_pylist()
    gallery = [row for task in params.tasks for row in examples(answered, task, params, stage.seed)]
    page = ClaimsPage(
        "X-LXMERT: questions about pictures",
        NOTE,
        [table_of(figures, task) for task in params.tasks],
        list(claims(figures, params.tasks)),
        [
            Gallery(
                "Questions and answers",
                "Drawn by the seed from the test split; ✓ is an answer that counts at least half.",
                [
                    "question",
                    "picture",
                    "right picture",
                    "people",
                    *(STARTS[start] for start in params.starts),
                ],
                gallery,
            )
        ],
        [(title, read_history(path)) for title, path in histories(params).items()],
    )
    with stage.write(PAGE) as path:
        write_claims_page(page, path)


def histories(params: Params) -> dict[str, Path]:
    """The histories of all trainings by their titles, in the order in which they are looked at."""
    fine_tuned = {
        f"{TITLES[task]}, {STARTS[start]}": PLOTS / f"{task}_{start}.csv"
        for task in params.tasks
        for start in params.starts
    }
    return {"Pretraining": PLOTS / "pretrain.csv", **fine_tuned}


def table_of(figures: Figures, task: str) -> ComparisonTable:
    """All figures of a task, a row each, by who answers."""
    own = {name: figure for name, figure in figures.items() if name.startswith(f"{task}.")}
    systems = {prefix: title for prefix, title in SYSTEMS.items() if f"{prefix}{task}.accuracy" in figures}
    rows = [
        (
            name.removeprefix(f"{task}.").replace("_", " "),
            [cell(figures.get(f"{prefix}{name}")) for prefix in systems],
        )
        for name, figure in own.items()
        if figure["value"] is not None
    ]
    first = own[f"{task}.accuracy"]
    note = f"{first['n']:,} questions of the {first['split']} split, in per cent; {first['detail']}."
    if f"{task}.distribution" in own:
        note += " Distribution is a distance, the less the better."
    missing = [
        f"{name.removeprefix(f'{task}.')}: {figure['reason']}"
        for name, figure in own.items()
        if figure["value"] is None
    ]
    if missing:
        note += f" Not measured: {'; '.join(missing)}."
    return ComparisonTable(TITLES[task], note, ["", *systems.values()], rows)


def cell(figure: Mapping[str, Any] | None) -> Cell:
    """A figure and its interval as the papers print it."""
    if figure is None or figure["value"] is None:
        return "–", ""
    value, low, high = (
        None if figure[name] is None else figure[name] * figure["scale"] for name in ("value", "low", "high")
    )
    return f"{value:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}"


def claims(figures: Figures, tasks: Sequence[str]) -> Iterator[JudgedClaim]:
    """Whether pretraining helps, where both starts were trained."""
    compared, verdicts = [], []
    for task in tasks:
        gain = figures.get(f"gain.{task}.accuracy")
        if gain is None:
            continue
        verdicts.append(better(Difference(gain["value"], gain["low"], gain["high"])))
        compared.append(
            ComparedFigure(
                TITLES[task],
                "better",
                cell(figures[f"{task}.accuracy"])[0],
                cell(figures[f"random.{task}.accuracy"])[0],
                " ".join(filter(None, (cell(gain)[0], f"({cell(gain)[1]})"))),
                verdicts[-1],
            )
        )
    if compared:
        text = "Fine-tuning is better from pretrained weights than from random ones, with equally many steps"
        yield JudgedClaim(text, all_of(verdicts), compared)


def examples(
    answered: Sequence[dict[str, Any]], task: str, params: Params, seed: int
) -> Iterator[tuple[str, list[tuple[str, bytes | str | None]]]]:
    """Questions of a task with their pictures, people's answers and those of each start."""
    rows = [row for row in answered if row["task"] == task and row["right"] is not None]
    of_start = {
        start: {row["question_id"]: row for row in rows if row["start"] == start} for start in params.starts
    }
    shards = shards_of("test")
    number = {key: index for index, key in enumerate(shards.keys)}
    first = [row for row in rows if row["start"] == params.starts[0]]
    for row in drawn(first, params.examples, seed):
        pictures = [shards.image_bytes(number[image]) for image in row["image_ids"]]
        answers = [of_start[start][row["question_id"]] for start in params.starts]
        yield (
            f"{TITLES[task]}: {row['question']}",
            [
                ("picture", pictures[0]),
                ("right picture", pictures[1] if len(pictures) > 1 else None),
                ("people", ", ".join(dict.fromkeys(row["references"]))),
                *(
                    (STARTS[start], f"{given['answer']} {'✓' if given['right'] >= 0.5 else '✗'}")
                    for start, given in zip(params.starts, answers, strict=True)
                ),
            ],
        )


if __name__ == "__main__":
    run("x_lxmert/report", Params, main)
