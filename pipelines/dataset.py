"""Draw Toybox, or read a dataset in COCO's format: pictures, captions, objects, and questions about them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.features.datasets.coco import CocoConfig, read_coco
from diptych.features.datasets.question_files import QuestionFilesConfig, read_question_files
from diptych.features.datasets.toybox import (
    ToyboxConfig,
    build_graph_questions,
    build_questions,
    build_statements,
    build_toybox,
)
from diptych.features.errors import UserError
from diptych.features.manifest import write_manifest, write_scenes
from diptych.features.questions import write_questions
from pipelines.runner.stage import FILE_FACTS, Stage, run

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class DatasetParams:
    """source: where the data come from, a dependency of the stage: COCO's folder, or Toybox's own code.

    toybox, coco: one of them, the other is null. All files and folders of coco lie below source: DVC looks at no other.
    """

    source: str
    toybox: ToyboxConfig | None
    coco: CocoConfig | None

    def __post_init__(self) -> None:
        if (self.toybox is None) == (self.coco is None):
            raise UserError("give one of toybox and coco, and null for the other")
        if self.coco is not None:
            # the other one is not read
            unread: dict[str, Any] = (
                {"sources": []} if self.coco.karpathy else {"images": None, "instances": []}
            )
            check_below(self.source, replace(self.coco, **unread), "coco")


def check_below(source: str, read: Any, key: str) -> None:
    """Raise UserError for the first path in `read`, a section of parameters or a part of one, that does not lie below `source`.

    Of a stage that depends on `source` alone, DVC would not see that what lies elsewhere has changed. key: of `read`.
    """
    if isinstance(read, Path):
        # as written: a linked folder may lead anywhere, and DVC follows it
        if not Path(os.path.abspath(read)).is_relative_to(os.path.abspath(source)):
            raise UserError(
                f"{key} is {read}, which is not below dataset.source, {source}: when it changed, DVC would not run the "
                "stage again; put it there, or name a folder that holds both as dataset.source"
            )
    elif is_dataclass(read):
        for field in fields(read):
            check_below(source, getattr(read, field.name), f"{key}.{field.name}")
    elif isinstance(read, list):
        for number, item in enumerate(read):
            check_below(source, item, f"{key}[{number}]")


def main(stage: Stage, params: DatasetParams) -> None:
    """Write the manifest, the same without captions (what visual stages read), the pictures drawn, and questions.

    questions/: vqa, gqa and nlvr2, each a table of its own, so that who trains on one does not depend on the others.
    """
    if params.toybox is None and not Path(params.source).exists():
        raise UserError(f"{params.source}: no such dataset folder; put the data there or set dataset.source")
    with stage.write("data/dataset") as folder:
        (folder / "images").mkdir(parents=True)  # stays empty where the pictures are somewhere else
        if params.toybox is not None:
            rows = build_toybox(params.toybox, stage.seed, folder)
        else:
            assert params.coco is not None
            rows = read_coco(params.coco, stage.seed, FILE_FACTS, Path("data/dataset"))
        table = write_manifest(rows, folder / "manifest.parquet")
        write_scenes(table, folder / "scenes.parquet")
        pictures = set(table["image_id"].to_pylist())
        for name, questions in _questions(params, stage.seed, table):
            write_questions(questions, folder / f"questions/{name}.parquet", pictures)


def _questions(
    params: DatasetParams, seed: int, manifest: pa.Table
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The names of the tables of questions and their rows."""
    if params.toybox is not None:
        yield from toybox_questions(params.toybox, seed)
        return
    assert params.coco is not None
    yield from questions_of_files(params.coco.questions or QuestionFilesConfig(), manifest)


def toybox_questions(toybox: ToyboxConfig, seed: int) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The tables of what Toybox asks: their names and rows."""
    yield "vqa", build_questions(toybox, seed)
    yield "gqa", build_graph_questions(toybox, seed)
    yield "nlvr2", build_statements(toybox, seed)


def questions_of_files(
    files: QuestionFilesConfig, manifest: pa.Table
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The tables of question files about a manifest's pictures: their names and rows."""
    ids, splits, paths = (manifest[name].to_pylist() for name in ("image_id", "split", "path"))
    pictures, files_of = dict(zip(ids, splits, strict=True)), dict(zip(ids, paths, strict=True))
    for name, sources in (("vqa", files.vqa), ("gqa", files.gqa), ("nlvr2", files.nlvr2)):
        yield name, read_question_files(sources, pictures, files_of)


if __name__ == "__main__":
    run("dataset", DatasetParams, main)
