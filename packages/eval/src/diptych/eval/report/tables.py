"""What the tables of the report say: plain rows of text, made from metrics and records of figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from diptych.eval.errors import UserError
from diptych.eval.report.labels import VIEWS, bounds, label, shown

Records = Mapping[str, Mapping[str, Any]]
"""Records of figures (:class:`diptych.eval.figures.Figure` as JSON) by name."""

CATEGORIES = ("nouns", "verbs", "colors", "numbers")
_NETWORKS = ("judge", "scorer")
_COLUMNS = {
    "bleu_4": "B@4 ↑",
    "meteor": "METEOR ↑",
    "rouge_l": "ROUGE-L ↑",
    "cider_d": "CIDEr-D ↑",
    "spice": "SPICE ↑",
    "clip_score": "CLIPScore ↑",
    "fid": "FID ↓",
    "inception_score": "IS ↑",
    "r_hard": "R-prec. hard, CLIP ↑",
    "r_easy": "R-prec. easy, CLIP ↑",
    "r_hard_vilbert": "hard, ViLBERT ↑",
    "r_easy_vilbert": "easy, ViLBERT ↑",
    "mean": "mean ↑",
    "colors": "colours ↑",
    "fid_0": "FID ↓",
    **{f"fid_{radius}": f"FID-{radius} ↓" for radius in (1, 2, 4, 8)},
}
# distances, losses, costs and faults
_SMALL_IS_GOOD = re.compile(r"[._](fid|frechet|distance|loss|l1|minutes|memory|megabytes|repeated)(?![a-z])")
_TITLES = {
    "captions": "Captions",
    "painted": "Painted pictures",
    "categories": "R-precision-hard by the category of the swapped word",
    "blurred": "FID of blurred pictures",
}


def check_targets(targets: Mapping[str, float | str]) -> None:
    """Raise UserError for a target without a stage's name or of a figure that is to be small, or that is neither a number nor a share
    such as "x0.7"."""
    for name, target in targets.items():
        if "." not in name:
            raise UserError(
                f"targets: '{name}' is no name of a figure: write STAGE.FIGURE, evaluate.caption.cider_d"
            )
        if _SMALL_IS_GOOD.search(name):
            raise UserError(
                f"targets: '{name}' is to be small, and a target is the least that is wanted; remove it"
            )
        if isinstance(target, str) and not re.fullmatch(r"x\d*\.?\d+", target):
            raise UserError(
                f"targets: '{name}' is '{target}'; write a number or a share of the real figure: x0.7"
            )


def headline(
    metrics: Mapping[str, Any],
    records: Records,
    targets: Mapping[str, float | str],
    ceilings: Mapping[str, float],
) -> list[dict[str, Any]]:
    """A row per target. Raises UserError as :func:`check_targets`."""
    check_targets(targets)
    rows = []
    for name, target in targets.items():
        value = metrics.get(name)
        stage, metric = name.split(".", 1)
        view = metric.split(".", 1)[0]
        real = metrics.get(f"{stage}.real.{metric.removeprefix(view + '.')}") if view in VIEWS[1:] else None
        ceiling = ceilings.get(name, real)
        if isinstance(target, str):
            least = float(target[1:]) * real if real is not None else None
            wanted = f"{float(target[1:]):.0%} of real"
        else:
            least, wanted = float(target), shown(metric, float(target))
        record = records.get(metric, {}) if stage == "evaluate" else {}
        # the same name as evaluate's, of other pictures and by another network
        by = f", measured by {stage}" if stage != "evaluate" and view in VIEWS else ""
        rows.append(
            {
                "label": f"{label(metric)}{by}",
                "value": shown(metric, value),
                "interval": bounds(metric, record.get("low"), record.get("high")),
                "target": wanted,
                "ceiling": "" if ceiling is None else shown(metric, ceiling),
                "met": None if value is None or least is None else value >= least,
            }
        )
    return rows


def caption_rows(records: Records, ceilings: Mapping[str, float]) -> list[dict[str, str]]:
    """Every caption figure that was run: its value, interval, ceiling and n."""
    return [
        {
            "label": label(name),
            "value": shown(name, record["value"]),
            "interval": bounds(name, record["low"], record["high"]),
            "ceiling": shown(name, ceilings[f"evaluate.{name}"]) if f"evaluate.{name}" in ceilings else "",
            "n": f"{record['n']:,}",
        }
        for name, record in records.items()
        if name.startswith("caption.") and record["value"] is not None
    ]


def answer_rows(records: Records) -> list[dict[str, str]]:
    """Accuracy of answers in all, then by kind of question, each beside that of who reads the question alone."""
    rows = []
    for name, record in records.items():
        measure, _, kind = name.partition(".accuracy")
        if measure != "answer" or record["value"] is None:
            continue
        alone = records.get(f"words_alone.accuracy{kind}", {})
        rows.append(
            {
                "label": kind.removeprefix("_").replace("color", "colour").replace("_", " ")
                or "all questions",
                "value": shown(name, record["value"]),
                "interval": bounds(name, record["low"], record["high"]),
                "alone": shown(name, alone.get("value")),
                "n": f"{record['n']:,}",
            }
        )
    return rows


def picture_rows(records: Records) -> list[dict[str, Any]]:
    """Every figure of pictures that was run for at least one view, with a (value, interval) per view."""
    names = dict.fromkeys(name.split(".", 1)[1] for name in records if name.split(".", 1)[0] in VIEWS)
    rows = []
    for name in names:
        found = [records.get(f"{view}.{name}", {}) for view in VIEWS]
        if any(record.get("value") is not None for record in found):
            cells = [
                (shown(name, record.get("value")), bounds(name, record.get("low"), record.get("high")))
                for record in found
            ]
            rows.append({"label": label(name), "cells": cells, "n": max(each.get("n", 0) for each in found)})
    return rows


def not_run(records: Records) -> list[tuple[str, list[str]]]:
    """(reason with its mend, names) of the figures that have no number; a figure of several views is named once."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for name, record in records.items():
        if record["value"] is None:
            view, _, rest = name.partition(".")
            several = reasons.setdefault(record["reason"] or "no reason given", {})
            if view in VIEWS:
                several.setdefault(label(rest), []).append(view)
            else:
                several[label(name)] = []
    return [
        (reason, [f"{name} ({', '.join(views)})" if views else name for name, views in several.items()])
        for reason, several in reasons.items()
    ]


def category_bars(records: Records) -> list[dict[str, Any]]:
    """R-precision-hard by the judge, or the CLIP that there is: a group per category, a bar per view."""
    for network in _NETWORKS:
        groups = []
        for category in CATEGORIES:
            found = [
                (view, records.get(f"{view}.r_precision_hard_{category}_{network}", {})) for view in VIEWS
            ]
            bars = [_bar(view, record) for view, record in found if record.get("value") is not None]
            if bars:
                groups.append({"label": category.replace("color", "colour"), "bars": bars})
        if groups:
            return groups
    return []


def _bar(text: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": text,
        "share": record["value"],
        "low": record["low"],
        "high": record["high"],
        "n": record["n"],
    }


def papers(records: Records) -> list[dict[str, Any]]:
    """The papers' tables (papers.json), each below the same figures of this run, in the papers' scale."""
    content = json.loads(files("diptych.eval.report").joinpath("papers.json").read_text(encoding="utf-8"))
    tables = []
    for table in content["tables"]:
        own = [
            (name, [_in_papers(records, figures.get(column)) for column in table["columns"]])
            for name, figures in _own_rows(table["name"])
        ]
        # a row of a CLIP or a view that this run does not have
        own = [row for row in own if any(cell not in ("", "–") for cell in row[1])] or own[:1]
        sources = [
            {
                "source": source["source"],
                "data": source["data"],
                "rows": [
                    (row["model"], [_one_decimal(row["values"][column]) for column in table["columns"]])
                    for row in source["rows"]
                ],
            }
            for source in table["sources"]
        ]
        columns = [_COLUMNS.get(column, f"{column} ↑") for column in table["columns"]]
        tables.append(
            {
                "title": _TITLES[table["name"]],
                "columns": columns,
                "own": own,
                "lacking": _lacking(records, table["name"], columns, table["columns"]),
                "sources": sources,
            }
        )
    return tables


def _lacking(
    records: Records, table: str, columns: list[str], names: list[str]
) -> list[tuple[str, list[str]]]:
    """(reason with its mend, columns) of the figures of a table that this run was to have and does not."""
    reasons: dict[str, list[str]] = {}
    for _, figures in _own_rows(table):
        for column, name in zip(columns, names, strict=True):
            own = figures.get(name, "")
            record = records.get(own) or records.get(own.replace("fid_pytorch", "fid"))
            if record is None or (own in records and record["value"] is not None):
                continue
            reason = (
                "no reason given" if record["value"] is None else "FID was not taken by the papers' protocol"
            )
            several = reasons.setdefault(record.get("reason") or reason, [])
            if column[:-2] not in several:  # without its arrow
                several.append(column[:-2])
    return list(reasons.items())


def _own_rows(table: str) -> list[tuple[str, dict[str, str]]]:
    """Rows of this run in a table of the papers: a name, and the figure of each column."""
    if table == "captions":
        return [
            (
                "captions",
                {name: f"caption.{name}" for name in ("bleu_4", "meteor", "rouge_l", "cider_d", "spice")},
            )
        ]
    # of the two protocols of FID only this one is the papers' (docs/metrics.md)
    fid = "painted.fid_pytorch"
    if table == "blurred":
        return [("painted", {"fid_0": fid, **{f"fid_{r}": f"{fid}_blur_{r}" for r in (1, 2, 4, 8)}})]
    rows = []
    for view in ("painted", "real"):
        for network in _NETWORKS:
            hard = f"{view}.r_precision_hard"
            if table == "categories":
                own = {"mean": f"{hard}_{network}"} | {
                    category: f"{hard}_{category}_{network}" for category in CATEGORIES
                }
            else:
                own = {
                    "clip_score": f"{view}.clip_score_{network}",
                    "r_hard": f"{hard}_{network}",
                    "r_easy": f"{view}.r_precision_{network}",
                    "inception_score": f"{view}.inception_score",
                }
                if view == "painted":
                    own["fid"] = fid
            rows.append((f"{view}, by the {network}", own))
    return rows


def _in_papers(records: Records, name: str | None) -> str:
    if name is None or name not in records:
        # FID may have been taken by the other protocol alone, which has no place here
        return "–" if name and name.replace("fid_pytorch", "fid") in records else ""
    record = records[name]
    return "–" if record["value"] is None else f"{record['value'] * record['scale']:.1f}"


def _one_decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
