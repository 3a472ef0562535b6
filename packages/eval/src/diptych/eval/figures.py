"""One measured number and everything it hangs on, its bootstrap interval, and many of them as a table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.eval.whole_files import written_whole

RESAMPLES = 1000
CONFIDENCE = 95.0  # per cent
# elements of the index arrays of a bootstrap at a time
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Figure:
    """A number, or why there is none.

    value: shares are 0..1; None where it was not run, and then `reason` says why and how to mend it.
    low, high: the 95% bootstrap interval over pictures (or what `detail` says); None where a resample would be biased (docs/metrics.md).
    deviation: standard deviation over folds or splits, where the papers give one.
    n: pictures, captions or questions that were measured. seed: of every drawing, the bootstrap's included.
    resize: what was done to pictures before the network saw them. model: the network or the tokens.
    reference_sha256: of the reference set (names and contents of pictures, or ids and captions).
    scale: papers' tables show value x scale.
    split, normalisation: of the questions, and what was done to answers before they were compared.
    detail: what else belongs to the number, such as the number of negatives.
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    seed: int | None = None
    resize: str | None = None
    model: str | None = None
    reference_sha256: str | None = None
    scale: float = 1.0
    split: str | None = None
    normalisation: str | None = None
    detail: str | None = None
    reason: str | None = None


def not_run(name: str, reason: str, n: int = 0) -> Figure:
    """A figure without a number; `reason` says what is missing and the mend."""
    return Figure(name, None, n, reason=reason)


def resampled_means(rows: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means float64 [resamples, k] of bootstrap samples (with repetition, of the same size) of rows [n, k]."""
    count = len(rows)
    generator = np.random.default_rng((seed, count))
    means = np.empty((resamples, rows.shape[1]))
    step = max(1, _CHUNK // max(1, count))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = generator.integers(0, count, (stop - start, count))
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn])
        means[start:stop] = weights @ rows / count
    return means


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95% of resampled values."""
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def mean_figure(
    name: str, values: Sequence[float] | np.ndarray, seed: int, resamples: int = RESAMPLES, **facts: Any
) -> Figure:
    """The mean of one value per picture with its interval. facts: other fields of the figure."""
    column = np.asarray(values, np.float64).reshape(-1, 1)
    if not len(column):
        return not_run(name, "there is nothing to measure: no picture has what this figure is about")
    low, high = interval(resampled_means(column, seed, resamples))
    return Figure(name, float(column.mean()), len(column), low, high, seed=seed, **facts)


def ratio_figure(
    name: str,
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    resamples: int = RESAMPLES,
    centred: bool = False,
    **facts: Any,
) -> Figure:
    """A statistic of the mean of rows [n, k]: `statistic` maps means [m, k] to values [m].

    centred: for statistics that a resample shifts as a whole, having fewer different rows than the sample: the
    interval is then that of the resamples around their own mean, laid around the value.
    """
    value = float(statistic(rows.mean(0, keepdims=True, dtype=np.float64))[0])
    drawn = statistic(resampled_means(rows, seed, resamples))
    low, high = interval(drawn - drawn.mean() + value if centred else drawn)
    return Figure(name, value, len(rows), low, high, seed=seed, **facts)


def sha256_of_json(content: object) -> str:
    """sha256 of the canonical JSON of `content`: the same for equal content, whatever its order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flat_values(figures: Iterable[Figure]) -> dict[str, float]:
    """Names to values of the figures that have one, as `dvc metrics` reads them."""
    return {
        figure.name: figure.value
        for figure in figures
        if figure.value is not None and math.isfinite(figure.value)
    }


def figures_json(figures: Iterable[Figure]) -> str:
    """A JSON list of records; a number that is not finite becomes null."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return round(value, 9) if math.isfinite(value) else None
        return value

    records = [{key: plain(value) for key, value in dataclasses.asdict(figure).items()} for figure in figures]
    return json.dumps(records, indent=2, ensure_ascii=False) + "\n"


def write_figures(figures: Iterable[Figure], path: Path) -> None:
    """Write the JSON list to `path` in one step."""
    with written_whole(path) as file:
        file.write(figures_json(figures).encode())


def table(figures: Sequence[Figure]) -> str:
    """A plain-text table: value, interval, the papers' scale, n; what was not run stands below with its reason."""
    rows = [("figure", "value", "95% interval", "in papers", "n")]
    for figure in figures:
        if figure.value is None:
            continue
        bounds = "" if figure.low is None else f"{_number(figure.low)} .. {_number(figure.high)}"
        spread = "" if figure.deviation is None else f" (sd {_number(figure.deviation)})"
        papers = "" if figure.scale == 1 else f"{figure.value * figure.scale:.1f}"
        rows.append((figure.name, _number(figure.value) + spread, bounds, papers, str(figure.n)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    reasons: dict[str, list[str]] = {}
    for figure in figures:
        if figure.value is None:
            reasons.setdefault(figure.reason or "no reason given", []).append(figure.name)
    lines += [f"not run: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    return f"{value:.0f}" if value == round(value) and abs(value) >= 10 else f"{value:.4f}"
