"""Caption, paint and measure the test set with any model, as `generate` and `evaluate` do with models/sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.measuring.drawn import Sample
from pipelines.measuring.figures import EMBEDDINGS, EvaluateParams, measure
from pipelines.measuring.generate_params import EvaluationSet, GenerateParams
from pipelines.measuring.generation import (
    IMAGE_GENERATOR,
    generate,
    pictures_of,
    shards_of,
    write_rows,
)
from pipelines.measuring.models import read_unified
from pipelines.runner import stage as stages

if TYPE_CHECKING:
    from diptych.eval.figures import Figure
    from diptych.model.decoding.options import PaintOptions


@dataclass(frozen=True)
class Measured:
    """figures: of the set. rows: what each picture has to do with them (`pipelines.measuring.figures.measure`)."""

    figures: list[Figure]
    rows: list[dict[str, Any]]


@contextlib.contextmanager
def measured_model(
    transformer: Path,
    table: Path,
    *,
    captions: bool = True,
    paintings: bool = True,
    paint: PaintOptions | None = None,
    guidance: float | None = None,
    pictures: Sample | None = None,
    evaluation: EvaluateParams | None = None,
    embeddings: Path = EMBEDDINGS,
    image_generator: Path = IMAGE_GENERATOR,
) -> Iterator[Measured]:
    """Write the table of captions and paintings that the model directory `transformer` makes of the test set, and measure
    it. Inside the block the table is there; after it, it is removed, being large. The seeds of decoding and of R-precision
    are the pipeline's, the same for all models.

    paint, evaluation: other options than those of the sections `generate` and `evaluate`. guidance: in the place of that of
    the options of painting. pictures: those to caption and to paint, in the place of `generate.sets.test`. image_generator: of what
    the model paints. embeddings: as of `pipelines.measuring.figures.measure`.
    """
    stage, generation = stages.read_stage("generate", GenerateParams)
    evaluation = evaluation or stages.read_stage("evaluate", EvaluateParams)[1]
    if paint is not None:
        generation = replace(generation, paint=paint)
    if guidance is not None:
        generation = replace(generation, paint=replace(generation.paint, guidance=guidance))
    wanted = EvaluationSet(pictures, pictures) if pictures is not None else generation.sets["test"]
    shards, to_caption, to_paint = pictures_of(wanted, stage.seed, shards_of)
    table.parent.mkdir(parents=True, exist_ok=True)
    batches = generate(
        stage,
        generation,
        shards,
        to_caption if captions else set(),
        to_paint if paintings else set(),
        read_unified(transformer, image_generator, stage.device),
    )
    try:
        write_rows(table, batches)
        yield Measured(*measure(stage, evaluation, table, Path("none"), embeddings))
    finally:
        table.unlink(missing_ok=True)
