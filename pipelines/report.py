"""One self-contained page with figures, curves, captions and pictures, and a contact sheet of unpicked pictures."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.eval.report import ReportInputs, contact_sheet, write_report
from pipelines.params import read_params
from pipelines.stage import Stage, run


@dataclass(frozen=True)
class ReportParams:
    """profile: its name, for the page; captions, pictures: how many to show, drawn by the seed.

    targets: the smallest figure wanted by name, "x0.7" for a share of the real pictures' figure; ceilings: what a
    perfect system would reach.
    """

    profile: str
    captions: int
    pictures: int
    targets: dict[str, float | str] | None
    ceilings: dict[str, float] | None


def main(stage: Stage, params: ReportParams) -> None:
    """Write report/index.html, report/contact_sheet.png and metrics/stages.json."""
    costs = {path.stem: read_json(path) for path in stage_files("metrics/stages/*.json")}
    minutes = {f"{name}.{figure}": value for name, cost in costs.items() for figure, value in cost.items()}
    minutes["total.minutes"] = sum(cost["minutes"] for cost in costs.values())
    stage.write_metrics("metrics/stages.json", minutes)

    rows = rows_of_test_split()
    shown = chosen(len(rows), params.pictures, stage.seed)
    pictures = [{**rows[index], "main_right": rows[index]["painted_right"]} for index in shown]
    captions = [
        {**rows[index], "real_png": rows[index]["real"], "main_right": rows[index]["caption_right"]}
        for index in chosen(len(rows), params.captions, stage.seed + 1)
    ]
    inputs = ReportInputs(
        title="Diptych",
        profile=params.profile,
        commit=commit(),
        parameters=read_params(),
        metrics={
            name: read_json(Path(f"metrics/{name}.json")) for name in ("detector", "cluster", "evaluate")
        },
        targets=params.targets or {},
        ceilings=params.ceilings or {},
        curves={path.stem: read_history(path) for path in stage_files("plots/*.csv")},
        captions=captions,
        pictures=pictures,
        stages=[{"name": name, **cost} for name, cost in costs.items()],
    )
    with stage.write("report") as folder:
        folder.mkdir()
        write_report(inputs, folder / "index.html")
        contact_sheet(pictures, columns=4).save(folder / "contact_sheet.png")


def rows_of_test_split() -> list[dict[str, Any]]:
    """Generated pictures and captions of the test split with their references and the verdicts of `evaluate`."""
    import pyarrow.parquet as pq

    from diptych.features.manifest import read_manifest

    manifest = (
        read_manifest(Path("data/dataset/manifest.parquet")).select(["image_id", "captions"]).to_pylist()
    )
    references = {row["image_id"]: row["captions"] for row in manifest}
    rows = pq.read_table("data/generated/test.parquet").to_pylist()
    verdicts = pq.read_table("data/evaluation.parquet").to_pylist()
    return [
        {**row, **verdict, "references": references[row["image_id"]]}
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def chosen(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` numbers, drawn by `seed` and nothing else: nobody picks the good ones."""
    import numpy as np

    return np.random.default_rng(seed).permutation(count)[:wanted].tolist()


def stage_files(pattern: str) -> list[Path]:
    """Files of `pattern` that belong to a stage of dvc.yaml, in the order of its stages."""
    from ruamel.yaml import YAML

    listed = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["report"]["deps"]
    return [Path(dep) for dep in listed if Path(dep).match(pattern)]


def read_json(path: Path) -> Mapping[str, Any]:
    """A metrics file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_history(path: Path) -> list[dict[str, float]]:
    """A training history, without the cells that are empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def commit() -> str:
    """The commit this page is made from, marked where files were changed since."""
    command = ["git", "describe", "--always", "--dirty=, with changes"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "none"


if __name__ == "__main__":
    run("report", ReportParams, main)
