"""One self-contained page with figures, curves, captions and pictures, and a contact sheet of unpicked pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.eval.report.page import ReportInputs, write_report
from diptych.eval.report.sheet import contact_sheet
from diptych.eval.report.tables import check_targets
from diptych.features.codebook.reading import load_cluster_sizes, read_codes
from diptych.features.ranges import check_at_least
from pipelines.reporting.answers import answer_galleries
from pipelines.reporting.failures import failures, lost_pictures, shares_by_class
from pipelines.reporting.histories import read_history
from pipelines.reporting.pictures import (
    clusters,
    repainted_samples,
    repainted_sheet,
    step_by_step,
    training_samples,
)
from pipelines.reporting.test_set import read_test_set
from pipelines.runner.params import read_params
from pipelines.runner.stage import Stage, commit, run

CODEBOOK = Path("data/codebook")
GENERATED, VERDICTS = Path("data/generated/test.parquet"), Path("data/evaluation.parquet")
# a page of its own: the report would otherwise wait for hours of trainings
TABLE1 = {
    "title": "The paper's table 1 in miniature: each claim with its verdict, and the samplers",
    "path": "../ablations/table1/index.html",
    "command": "make table1",
}


@dataclass(frozen=True)
class ReportParams:
    """profile: its name, for the page. captions, pictures: how many to show of each choice: drawn by the seed, the best
    and the worst. steps: how many paintings are shown step by step. clusters: how many codes of each choice: largest,
    smallest and drawn. evaluations: how many of those during training, the last among them.

    targets: the smallest figure wanted by name, "x0.7" for a share of the real pictures' figure; ceilings: what a
    perfect system would reach.
    """

    profile: str
    captions: int
    pictures: int
    steps: int
    clusters: int
    evaluations: int
    targets: dict[str, float | str] | None
    ceilings: dict[str, float] | None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "captions", "pictures", "evaluations")
        check_at_least(self, 0, "steps", "clusters")
        check_targets(self.targets or {})


def main(stage: Stage, params: ReportParams) -> None:
    """Write report/index.html, its contact sheets (what was painted, what was repainted) and metrics/stages.json."""
    costs = {path.stem: read_json(path) for path in stage_files("metrics/stages/*.json")}
    minutes = {f"{name}.{figure}": value for name, cost in costs.items() for figure, value in cost.items()}
    total = sum(cost["minutes"] for cost in costs.values())
    stage.write_metrics("metrics/stages.json", {"profile": params.profile, **minutes, "total.minutes": total})

    figures = json.loads(Path("data/evaluation_figures.json").read_text(encoding="utf-8"))
    test = read_test_set(params.captions, params.pictures, stage.seed, GENERATED, VERDICTS)
    answers, asked = answer_galleries(params.captions, stage.seed + 2)
    repainted = repainted_samples(Path("plots/image_generator_samples.parquet"), params.evaluations)
    sizes = load_cluster_sizes(CODEBOOK)
    lost, pictures = lost_pictures(Path("data/features")), len(read_codes(CODEBOOK)[0])
    inputs = ReportInputs(
        title="Diptych",
        profile=params.profile,
        commit=commit(),
        data=test.data,
        parameters=read_params(),
        metrics={
            name: read_json(Path(f"metrics/{name}.json"))
            for name in ("detector", "cluster", "image_generator", "evaluate")
        },
        figures=figures,
        targets=params.targets or {},
        ceilings=params.ceilings or {},
        curves=read_curves(),
        captions=test.captions,
        answers=answers,
        pictures=test.pictures,
        choices={
            **test.choices,
            "answers": {
                "random": f"drawn by the seed from {asked:,} questions",
                "wrong": "drawn by the seed from those whose answer counts less than half",
            },
        },
        painting=step_by_step(test.pictures["random"][: params.steps]),
        cluster_sizes=sizes.tolist(),
        clusters=clusters(sizes, params.clusters, stage.seed),
        bars=shares_by_class(test.painted, test.captioned),
        failures=failures(test.painted, test.captioned, figures, lost, pictures + len(lost)),
        progress=training_samples(params.evaluations),
        reconstructions=repainted,
        stages=[{"name": name, **cost} for name, cost in costs.items()],
        further=[TABLE1],
    )
    with stage.write("report") as folder:
        folder.mkdir()
        write_report(inputs, folder / "index.html")
        contact_sheet(test.pictures["random"], columns=4).save(folder / "contact_sheet.png")
        if repainted:
            repainted_sheet(repainted).save(folder / "reconstructions.png")
    print(in_short(inputs.metrics["evaluate"]))


def in_short(evaluated: Mapping[str, Any]) -> str:
    """The three figures that matter, as far as the run has them, in a line."""
    figures = {
        "captions' CIDEr-D": "caption.cider_d",
        "paintings' main object right": "painted.main_object",
        "answers right": "answer.accuracy",
    }
    found = [f"{words} {evaluated[name]:.2f}" for words, name in figures.items() if name in evaluated]
    return f"On the test split: {', '.join(found)}" if found else "No figure of the test split was measured"


def stage_files(pattern: str) -> list[Path]:
    """Files of `pattern` that belong to a stage of dvc.yaml, in the order of its stages."""
    from ruamel.yaml import YAML

    listed = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["report"]["deps"]
    return [Path(dep) for dep in listed if Path(dep).match(pattern)]


def read_json(path: Path) -> Mapping[str, Any]:
    """A metrics file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_curves() -> dict[str, list[dict[str, float]]]:
    """The training histories by stage; those of the val split (`<stage>_val.csv`) follow their stage's own rows."""
    curves: dict[str, list[dict[str, float]]] = {}
    for path in stage_files("plots/*.csv"):
        curves.setdefault(path.stem.removesuffix("_val"), []).extend(read_history(path))
    return curves


if __name__ == "__main__":
    run("report", ReportParams, main)
