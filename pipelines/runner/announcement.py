"""What a stage says when it starts: what it does, and about how long that takes here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.runner.items import read_items

LAST_RUN = Path("metrics/stages.json")
THIS_RUN = Path("metrics/stages")


def announcement(name: str, pipeline: Path, params: Mapping[str, Any]) -> str:
    """One line: stage `name` of a pipeline file, its description there and, where the last run of this profile says it, the
    minutes that it takes."""
    own = name.rpartition("/")[2]
    (described,) = (item.description for item in read_items(pipeline, params) if item.name == own)
    minutes = expected_minutes(own, params) if pipeline == Path("dvc.yaml") else None
    if minutes is None:
        takes = ""
    elif minutes < 1:
        takes = f"; about {max(1, round(minutes * 6)) * 10} seconds"
    else:
        takes = f"; about {minutes:.0f} minute{'s' if round(minutes) > 1 else ''}"
    return f"{name}: {described}{takes}" if described else f"{name}{takes}"


def expected_minutes(stage: str, params: Mapping[str, Any]) -> float | None:
    """Minutes of a stage in the last run whose report was written, or in the committed one, times how much longer those stages
    of this run take that have ended. None where that run was another profile's."""
    last = read_figures(LAST_RUN)
    minutes = last.get(f"{stage}.minutes")
    profile = params.get("report", {}).get("profile") if isinstance(params.get("report"), Mapping) else None
    if not isinstance(minutes, int | float) or last.get("profile") != profile:
        return None
    ended = {file.stem: read_figures(file).get("minutes") for file in THIS_RUN.glob("*.json")}
    both = [
        (now, before)
        for name, now in ended.items()
        if isinstance(now, int | float) and isinstance(before := last.get(f"{name}.minutes"), int | float)
    ]
    now, before = (sum(side) for side in zip(*both, strict=True)) if both else (0.0, 0.0)
    return minutes * now / before if before > 0 else minutes


def read_figures(file: Path) -> Mapping[str, Any]:
    """A file of metrics; empty where there is none that can be read."""
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return figures if isinstance(figures, dict) else {}
