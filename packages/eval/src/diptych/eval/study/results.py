"""Tallies of a study with bootstrap intervals, and its answers as CSV."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diptych.eval.study.plan import KINDS
from diptych.eval.study.store import Answered, Study
from diptych.eval.study.vocabulary import is_match

Name = TypeVar("Name", bound=Hashable)

PASS_SHARE = 0.7
RESAMPLES = 10_000
# nobody is asked about one caption of one system and kind twice, so items of a comparison are captions
_UNITS = {"items": "captions", "annotators": "annotators"}


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Preference:
    """Answers to one kind of question about two systems: shares of all answers, between 0 and 1.

    margin: share of `system` minus share of `other`, by which the paper's 5.5 says that one surpasses the other.
    """

    kind: str
    system: str
    other: str
    answers: int
    items: int
    system_share: Interval
    tie_share: Interval
    other_share: Interval
    margin: Interval


@dataclass(frozen=True)
class Hummus:
    """The share of hidden words that a strict majority of their annotators typed (X-LXMERT, 6.1).

    category: "noun", ..., or "all". items: pictures with a hidden word that have an answer.
    word_share: the share of right words among all answers, no majority asked.
    """

    system: str
    category: str
    answers: int
    items: int
    score: Interval
    word_share: float


@dataclass(frozen=True)
class Attendance:
    """How far somebody is. `flagged`: fewer than 70% of the answered attention checks are right."""

    annotator: str
    answered: int
    questions: int
    checks_right: int
    checks_answered: int
    flagged: bool
    median_seconds: float | None


@dataclass(frozen=True)
class Results:
    """Everything that a study says so far; `interval` says how its intervals were made."""

    title: str
    systems: tuple[str, ...]
    seed: int
    interval: str
    without_flagged: bool
    attendance: tuple[Attendance, ...]
    preferences: tuple[Preference, ...]
    hummus: tuple[Hummus, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain objects for json.dump."""
        return asdict(self)


def is_right(answered: Answered) -> bool:
    """Whether the answer is the known one: the item's word, or the picture of the item's system in a check."""
    if answered.answer is None:
        return False
    if answered.item.kind == "hummus":
        return is_match(answered.answer, answered.item.accepted)
    return answered.answer == ("first" if answered.system_first else "second")


def chosen_system(answered: Answered) -> str | None:
    """Whose picture was chosen in a comparison, or "tie"; None for hummus and without an answer."""
    item = answered.item
    if answered.answer is None or item.kind == "hummus":
        return None
    if answered.answer == "tie":
        return "tie"
    if (answered.answer == "first") == answered.system_first:
        return item.system
    return item.other if item.other is not None else "scrambled"


def bootstrap(
    clusters: NDArray[np.int64],
    statistics: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    resamples: int,
) -> list[Interval]:
    """Statistics of the sum over clusters [n, ...], and their 2.5% and 97.5% quantiles over resampled clusters.

    statistics: from sums [B, ...] to values [B, S]; NaN where a resample cannot say anything. Seed 0.
    """
    estimates = statistics(clusters.sum(0, keepdims=True))[0]
    random, values = np.random.default_rng(0), []
    count = len(clusters)
    flat = clusters.reshape(count, -1).astype(np.float64)
    for start in range(0, resamples, 1000):
        size = min(1000, resamples - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=size)
        sums = np.rint(weights @ flat).astype(np.int64)
        values.append(statistics(sums.reshape(size, *clusters.shape[1:])))
    bounds = np.nanquantile(np.concatenate(values), [0.025, 0.975], axis=0).T
    return [
        Interval(float(value), float(low), float(high))
        for value, (low, high) in zip(estimates, bounds, strict=True)
    ]


def tally(
    study: Study,
    *,
    resample: str = "items",
    resamples: int = RESAMPLES,
    without_flagged: bool = False,
) -> Results:
    """The results so far.

    resample: "items" draws captions anew with all their answers (do the systems differ on other captions too?),
        "annotators" draws annotators anew with all theirs (would others say the same?).
    without_flagged: leave out the answers of annotators who fail the attention checks.
    """
    everything = study.answered()
    attendance = _attendance(everything)
    flagged = {row.annotator for row in attendance if row.flagged}
    answers = [
        row
        for row in everything
        if row.answer is not None
        and not row.item.check
        and not (without_flagged and row.annotator in flagged)
    ]
    preferences = []
    for kind in KINDS:
        for other in study.systems[1:]:
            rows = [row for row in answers if row.item.kind == kind and row.item.other == other]
            if rows and kind != "hummus":
                preferences.append(_preference(rows, resample, resamples))
    hummus = []
    for system in study.systems:
        rows = [row for row in answers if row.item.kind == "hummus" and row.item.system == system]
        categories = sorted({row.item.category or "" for row in rows})
        for category in [*categories, "all"] if rows else []:
            of_category = [row for row in rows if category in ("all", row.item.category)]
            hummus.append(_hummus(of_category, category, resample, resamples))
    return Results(
        title=study.title,
        systems=study.systems,
        seed=study.seed,
        interval=f"95% percentile bootstrap over {_UNITS[resample]}, {resamples} resamples",
        without_flagged=without_flagged,
        attendance=tuple(attendance),
        preferences=tuple(preferences),
        hummus=tuple(hummus),
    )


def _attendance(rows: Sequence[Answered]) -> list[Attendance]:
    by_annotator: dict[str, list[Answered]] = defaultdict(list)
    for row in rows:
        by_annotator[row.annotator].append(row)
    result = []
    for annotator, asked in by_annotator.items():
        answered = [row for row in asked if row.answer is not None]
        checks = [row for row in answered if row.item.check]
        right = sum(is_right(row) for row in checks)
        seconds = [row.seconds for row in answered if row.seconds is not None]
        result.append(
            Attendance(
                annotator,
                len(answered),
                len(asked),
                right,
                len(checks),
                right < PASS_SHARE * len(checks),
                float(np.median(seconds)) if seconds else None,
            )
        )
    return result


def _preference(rows: Sequence[Answered], resample: str, resamples: int) -> Preference:
    places = {rows[0].item.system: 0, "tie": 1, rows[0].item.other: 2}
    clusters = _numbered(_cluster(row, resample) for row in rows)
    counts = np.zeros((len(clusters), 3), np.int64)
    for row in rows:
        choice = row.answer if row.answer == "tie" else chosen_system(row)
        counts[clusters[_cluster(row, resample)], places[choice]] += 1

    def shares_and_margin(sums: NDArray[np.int64]) -> NDArray[np.float64]:
        shares = sums / sums.sum(1, keepdims=True)
        return np.column_stack([shares, shares[:, 0] - shares[:, 2]])

    system, tie, other, margin = bootstrap(counts, shares_and_margin, resamples)
    return Preference(
        kind=rows[0].item.kind,
        system=rows[0].item.system,
        other=rows[0].item.other or "",
        answers=len(rows),
        items=len({row.item_id for row in rows}),
        system_share=system,
        tie_share=tie,
        other_share=other,
        margin=margin,
    )


def _hummus(rows: Sequence[Answered], category: str, resample: str, resamples: int) -> Hummus:
    items = _numbered(row.item_id for row in rows)
    annotators = _numbered(row.annotator for row in rows)
    # [annotators, items, (right, answered)]
    votes = np.zeros((len(annotators), len(items), 2), np.int64)
    for row in rows:
        place = annotators[row.annotator], items[row.item_id]
        votes[place] += [is_right(row), 1]

    def score_of_votes(sums: NDArray[np.int64]) -> NDArray[np.float64]:
        right, answered = sums[..., 0], sums[..., 1]
        return ((2 * right > answered).sum(1) / (answered > 0).sum(1))[:, None]

    if resample == "annotators":
        [score] = bootstrap(votes, score_of_votes, resamples)
    else:
        per_item = votes.sum(0)
        decided = np.stack([2 * per_item[:, 0] > per_item[:, 1], np.ones(len(items), bool)], axis=1)
        [score] = bootstrap(decided.astype(np.int64), lambda sums: sums[:, :1] / sums[:, 1:], resamples)
    return Hummus(
        system=rows[0].item.system,
        category=category,
        answers=len(rows),
        items=len(items),
        score=score,
        word_share=float(votes[..., 0].sum() / votes[..., 1].sum()),
    )


def _numbered(names: Iterable[Name]) -> dict[Name, int]:
    """Names to numbers from 0, in the order of their first occurrence."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _cluster(row: Answered, resample: str) -> str:
    return row.annotator if resample == "annotators" else row.item.image


COLUMNS = (
    *("annotator", "flagged", "position", "kind", "check", "image", "caption", "system", "other"),
    *(
        "first_picture",
        "answer",
        "chosen",
        "category",
        "word",
        "right",
        "answers_given",
        "seconds",
        "answered",
    ),
)


def answers_csv(study: Study) -> str:
    """One line per question that has an answer; `flagged` marks annotators who fail the attention checks.

    chosen: the system whose picture was chosen, or "tie"; right: of hummus and checks. answers_given is above 1
    where somebody changed an answer; the last one counts. Cells that a spreadsheet would run as formulas begin with '.
    """
    everything = study.answered()
    flagged = {row.annotator: int(row.flagged) for row in _attendance(everything)}
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in everything:
        if row.answer is None:
            continue
        item = row.item
        other = item.other or ("scrambled" if item.kind == "fidelity" else "")
        cells: list[object] = [
            row.annotator,
            flagged[row.annotator],
            row.position + 1,
            item.kind,
            int(item.check),
            item.image,
            item.caption,
            item.system,
            other,
            item.system if row.system_first or not other else other,
            row.answer,
            chosen_system(row) or "",
            item.category or "",
            item.word or "",
            int(is_right(row)) if item.check or item.kind == "hummus" else "",
            (row.revision or 0) + 1,
            "" if row.seconds is None else round(row.seconds, 2),
            row.answered,
        ]
        writer.writerow([_plain_cell(cell) for cell in cells])
    return target.getvalue()


def _plain_cell(cell: object) -> object:
    return "'" + cell if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
