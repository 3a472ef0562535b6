"""What X-LXMERT is asked: VQA's and GQA's questions and NLVR2's statements, drawn (Toybox) or read from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.features.errors import UserError
from diptych.features.manifest import read_manifest
from diptych.features.questions import write_questions
from pipelines.dataset import DatasetParams, questions_of_files, toybox_questions
from pipelines.runner.params import read_params, read_section
from pipelines.runner.stage import Stage, run
from pipelines.x_lxmert.params import Params

MANIFEST = Path("data/dataset/manifest.parquet")


def main(stage: Stage, params: Params) -> None:
    """Write data/x_lxmert/questions/<task>.parquet, a table for each task; one that nothing is asked for is empty."""
    manifest = read_manifest(MANIFEST)
    pictures = dict(zip(manifest["image_id"].to_pylist(), manifest["split"].to_pylist(), strict=True))
    with stage.write("data/x_lxmert/questions") as folder:
        for task, rows in asked(stage, params, pictures):
            table = write_questions(rows, folder / f"{task}.parquet", pictures)
            print(f"{task}: {table.num_rows:,} questions")


def asked(
    stage: Stage, params: Params, pictures: Mapping[str, str]
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The tables: their names and rows. pictures: image_id to split."""
    wanted = params.questions
    if wanted.files is not None:
        read = questions_of_files(wanted.files, pictures)
        return ((task, balanced_to_train(rows) if task == "gqa" else rows) for task, rows in read)
    drawn = read_section(DatasetParams, "dataset", read_params()).toybox
    if drawn is None:
        raise UserError(
            "x_lxmert.questions.toybox asks about pictures that dataset.toybox draws, and that is null; give files instead"
        )
    return toybox_questions(replace(drawn, questions=wanted.toybox), stage.seed)


def balanced_to_train(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """GQA's, without the unbalanced ones about training pictures: these are there for the consistency of others' answers, and LXMERT
    does not train on them."""
    for row in rows:
        if row["split"] != "train" or row["balanced"] is not False:
            yield row


if __name__ == "__main__":
    run("x_lxmert/questions", Params, main)
