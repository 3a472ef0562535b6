"""The report: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.eval.report.charts import cluster_sizes, curves
from diptych.eval.report.labels import VIEWS, flatten, shown
from diptych.eval.report.rendering import write_page
from diptych.eval.report.tables import (
    answer_rows,
    caption_rows,
    category_bars,
    headline,
    not_run,
    papers,
    picture_rows,
)


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report shows. What is empty is left out of the page. Pictures are PNG or JPEG files as bytes.

    data: what was measured, for the tables beside the papers' ("toybox, 500 pictures of test").
    metrics: per stage the (flat or nested) metrics of its JSON file; "evaluate" feeds the headline.
    figures: records of what `evaluate` measured, :class:`diptych.eval.figures.Figure` as mappings.
    targets: smallest value wanted, by "stage.metric" ("evaluate.caption.cider_d": 3.5); a target that
        starts with "x" is a share of the real pictures' figure ("x0.7").
    ceilings: what a perfect system would reach, by "stage.metric"; painted pictures have the real ones'.
    curves: per stage the history rows of its training, {"step": ..., "loss": ..., ...}.
    captions: by choice ("random", "best", ...), rows {"image_id", "real", "marks" (of
        :func:`diptych.eval.report.marks.mark_words`), "references", "right", "score"}; "right" and "score" may be None.
    answers: by choice, rows {"image_id", "real", "question", "kind", "answers" (likeliest first), "probabilities",
        "references" (people's answers), "score" (0..1)}.
    pictures: by choice, rows {"image_id", "prompt", "real", "reconstruction", "painted", "right", "score"}.
    choices: what the choices of the galleries mean, {"captions": {"best": ...}, "pictures": {...}, "answers": {...}}.
    painting: sentences step by step, {"prompt", "real", "steps"}; steps are {"name", "painted", "changed" (numbers
        of the cells whose code is another than in the step shown before)}; cells are 8 x 8.
    cluster_sizes: cells per code. clusters: by choice, rows {"code", "cells", "patches"}, the last a strip of pictures.
    bars: shares by class and the like, {"title", "note", "groups": [{"label", "bars": [{"label", "share", "low",
        "high", "n"}]}]}; low and high may be None.
    failures: {"kind", "count", "of", "note"}.
    stages: {"name", "minutes", "peak_memory_gib"}; the memory may be None.
    progress: what became of the same pictures during training: {"image_id", "real", "prompt", "steps"}, where steps
        are {"step", "caption" of the picture, "painted" from the prompt}.
    reconstructions: {"image_id", "real", "steps"} likewise for the image generator's training; steps are {"step",
        "painted" from the codes}.
    further: pages that another command makes of the same models, {"title", "path" from this page, "command"}.
    """

    title: str
    profile: str
    commit: str
    data: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    figures: Sequence[Mapping[str, Any]] = ()
    targets: Mapping[str, float | str] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    captions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    answers: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    painting: Sequence[Mapping[str, Any]] = ()
    cluster_sizes: Sequence[int] = ()
    clusters: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    bars: Sequence[Mapping[str, Any]] = ()
    failures: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    progress: Sequence[Mapping[str, Any]] = ()
    reconstructions: Sequence[Mapping[str, Any]] = ()
    further: Sequence[Mapping[str, str]] = ()


def write_report(inputs: ReportInputs, path: Path | str) -> None:
    """Write the page to `path`, whole or not at all; all text from outside is escaped.

    Raises UserError for a target that is neither a number nor a share such as "x0.7".
    """
    metrics = {
        f"{stage}.{name}": value
        for stage, tree in inputs.metrics.items()
        for name, value in flatten(tree).items()
    }
    records = {record["name"]: record for record in inputs.figures}
    hard = category_bars(records)
    write_page(
        Path(path),
        "diptych.eval.report",
        "page.html.j2",
        {"shown": shown},
        inputs=inputs,
        views=VIEWS,
        headline=headline(metrics, records, inputs.targets, inputs.ceilings),
        papers=papers(records) if records else [],
        caption_rows=caption_rows(records, inputs.ceilings),
        answer_rows=answer_rows(records),
        picture_rows=picture_rows(records),
        not_run=not_run(records),
        hard=hard,
        metrics=[(name, shown(name, value)) for name, value in metrics.items()],
        curves={stage: curves(stage, rows) for stage, rows in inputs.curves.items() if rows},
        sizes=cluster_sizes(inputs.cluster_sizes) if any(inputs.cluster_sizes) else None,
        parameters=flatten(inputs.parameters),
        total_minutes=sum(stage["minutes"] for stage in inputs.stages),
        longest=max((stage["minutes"] for stage in inputs.stages), default=0) or 1,
        peak=max((stage["peak_memory_gib"] or 0 for stage in inputs.stages), default=0),
    )
