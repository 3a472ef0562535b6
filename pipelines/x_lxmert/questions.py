"""What X-LXMERT is asked: VQA's and GQA's questions and NLVR2's statements, drawn (Toybox) or read from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.features.errors import UserError
from diptych.features.manifest import read_manifest
from diptych.features.questions import write_questions
from pipelines.dataset import DatasetParams, check_below, questions_of_files, toybox_questions
from pipelines.runner.params import read_params, read_section
from pipelines.runner.stage import Stage, run
from pipelines.x_lxmert.params import Params

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = Path("data/dataset/manifest.parquet")


def main(stage: Stage, params: Params) -> None:
    """Write data/x_lxmert/questions/<task>.parquet, a table for each task; one that nothing is asked for is empty."""
    manifest = read_manifest(MANIFEST)
    pictures = set(manifest["image_id"].to_pylist())
    with stage.write("data/x_lxmert/questions") as folder:
        for task, rows in asked(stage, params, manifest):
            table = write_questions(rows, folder / f"{task}.parquet", pictures)
            print(f"{task}: {table.num_rows:,} questions")


def asked(stage: Stage, params: Params, manifest: pa.Table) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The tables: their names and rows."""
    wanted, dataset = params.questions, read_section(DatasetParams, "dataset", read_params())
    if wanted.files is not None:
        if dataset.coco is not None:  # of Toybox no folder is a dependency
            check_below(dataset.source, wanted.files, "x_lxmert.questions.files")
        read = questions_of_files(wanted.files, manifest)
        return ((task, balanced_to_train(rows) if task == "gqa" else rows) for task, rows in read)
    if dataset.toybox is None:
        raise UserError(
            "x_lxmert.questions.toybox asks about pictures that dataset.toybox draws, and that is null; give files instead"
        )
    return toybox_questions(replace(dataset.toybox, questions=wanted.toybox), stage.seed)


def balanced_to_train(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """GQA's, without the unbalanced ones about training pictures: these are there for the consistency of others' answers, and LXMERT
    does not train on them."""
    for row in rows:
        if row["split"] != "train" or row["balanced"] is not False:
            yield row


if __name__ == "__main__":
    run("x_lxmert/questions", Params, main)
