"""What X-LXMERT is asked: VQA's and GQA's questions and NLVR2's statements, drawn (Toybox) or read from files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.features.datasets.question_files import read_question_files
from diptych.features.datasets.toybox import ToyboxConfig
from diptych.features.errors import UserError
from diptych.features.manifest import read_manifest
from diptych.features.questions import write_questions
from pipelines.dataset import toybox_questions
from pipelines.runner.params import read_params, read_section
from pipelines.runner.stage import Stage, run
from pipelines.x_lxmert.params import TASKS, Params

MANIFEST = Path("data/dataset/manifest.parquet")


def main(stage: Stage, params: Params) -> None:
    """Write data/x_lxmert/questions/<task>.parquet, a table for each task; one that nothing is asked for is empty."""
    manifest = read_manifest(MANIFEST)
    pictures = dict(zip(manifest["image_id"].to_pylist(), manifest["split"].to_pylist(), strict=True))
    with stage.write("data/x_lxmert/questions") as folder:
        for task, rows in asked(stage, params, pictures).items():
            table = write_questions(rows, folder / f"{task}.parquet", pictures)
            print(f"{task}: {table.num_rows:,} questions")


def asked(stage: Stage, params: Params, pictures: dict[str, str]) -> dict[str, Any]:
    """The rows of each table. pictures: image_id to split."""
    wanted = params.questions
    if wanted.files is not None:
        return {task: read_question_files(getattr(wanted.files, task), pictures) for task in TASKS}
    scenes = read_section(DrawnParams, "dataset", {"dataset": {"toybox": read_params()["dataset"]["toybox"]}})
    if scenes.toybox is None:
        raise UserError(
            "x_lxmert.questions.toybox asks about pictures that dataset.toybox draws, and that is null; give files instead"
        )
    return dict(toybox_questions(replace(scenes.toybox, questions=wanted.toybox), stage.seed))


@dataclass(frozen=True)
class DrawnParams:
    """The part of the section `dataset` that says what is drawn."""

    toybox: ToyboxConfig | None


if __name__ == "__main__":
    run("x_lxmert/questions", Params, main)
