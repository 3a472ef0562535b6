"""Draw Toybox, or read a dataset in COCO's format: pictures, captions, objects, and questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class DatasetParams:
    """source: where the data come from, a dependency of the stage: COCO's folder, or Toybox's own code.

    toybox, coco: one of them, the other is null.
    """

    source: str
    toybox: ToyboxConfig | None
    coco: CocoConfig | None

    def __post_init__(self) -> None:
        if (self.toybox is None) == (self.coco is None):
            raise UserError("give one of toybox and coco, and null for the other")


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
        pictures = dict(zip(table["image_id"].to_pylist(), table["split"].to_pylist(), strict=True))
        for name, questions in _questions(params, stage.seed, pictures):
            write_questions(questions, folder / f"questions/{name}.parquet", pictures)


def _questions(
    params: DatasetParams, seed: int, pictures: Mapping[str, str]
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The names of the tables of questions and their rows. pictures: image_id to split."""
    if params.toybox is not None:
        yield from toybox_questions(params.toybox, seed)
        return
    assert params.coco is not None
    yield from questions_of_files(params.coco.questions or QuestionFilesConfig(), pictures)


def toybox_questions(toybox: ToyboxConfig, seed: int) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The tables of what Toybox asks: their names and rows."""
    yield "vqa", build_questions(toybox, seed)
    yield "gqa", build_graph_questions(toybox, seed)
    yield "nlvr2", build_statements(toybox, seed)


def questions_of_files(
    files: QuestionFilesConfig, pictures: Mapping[str, str]
) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """The tables of question files: their names and rows. pictures: image_id to split."""
    for name, sources in (("vqa", files.vqa), ("gqa", files.gqa), ("nlvr2", files.nlvr2)):
        yield name, read_question_files(sources, pictures)


if __name__ == "__main__":
    run("dataset", DatasetParams, main)
