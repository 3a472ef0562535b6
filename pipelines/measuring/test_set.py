"""Caption, paint and measure the test set with any model, as `generate` and `evaluate` do with models/sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.measuring.drawn import Sample
from pipelines.measuring.figures import EMBEDDINGS, KINDS, EvaluateParams, measure
from pipelines.measuring.generate_params import EvaluationSet, GenerateParams
from pipelines.measuring.generation import (
    generate,
    pictures_of,
    write_rows,
)
from pipelines.measuring.shards import shards_of
from pipelines.runner import stage as stages

if TYPE_CHECKING:
    from diptych.eval.figures import Figure
    from diptych.model.decoding.options import CaptionOptions, PaintOptions
    from pipelines.measuring.models import GenerativeModel


@dataclass(frozen=True)
class Measured:
    """figures: of the set. rows: what each picture has to do with them (`pipelines.measuring.figures.measure`)."""

    figures: list[Figure]
    rows: list[dict[str, Any]]


@contextlib.contextmanager
def measured_model(
    model: GenerativeModel,
    table: Path,
    *,
    read: Callable[[str], Any] = shards_of,
    captions: bool = True,
    paintings: bool = True,
    caption: CaptionOptions | None = None,
    paint: PaintOptions | None = None,
    guidance: float | None = None,
    pictures: Sample | None = None,
    evaluation: EvaluateParams | None = None,
    embeddings: Path = EMBEDDINGS,
    kinds: Sequence[str] = KINDS,
) -> Iterator[Measured]:
    """Write the table of captions and paintings that `model` makes of the test set, and measure
    it. Inside the block the table is there; after it, it is removed, being large. The seeds of decoding and of R-precision
    are the pipeline's, the same for all models.

    read: a split as the model reads it. caption, paint, evaluation: other options than those of the sections `generate` and
    `evaluate`. guidance: in the place of that of the options of painting. pictures: those to caption and to paint, in the place of
    `generate.sets.test`. embeddings, kinds: as of `pipelines.measuring.figures.measure`.
    """
    stage, generation = stages.read_stage("generate", GenerateParams)
    # models may be measured side by side, and each would ask for the whole cluster
    stage = replace(stage, machine=replace(stage.machine, ray_address=None))
    evaluation = evaluation or stages.read_stage("evaluate", EvaluateParams)[1]
    if caption is not None:
        generation = replace(generation, caption=caption)
    if paint is not None:
        generation = replace(generation, paint=paint)
    if guidance is not None:
        generation = replace(generation, paint=replace(generation.paint, guidance=guidance))
    wanted = EvaluationSet(pictures, pictures) if pictures is not None else generation.sets["test"]
    shards, to_caption, to_paint = pictures_of(wanted, stage.seed, read)
    table.parent.mkdir(parents=True, exist_ok=True)
    batches = generate(
        stage,
        generation,
        shards,
        to_caption if captions else set(),
        to_paint if paintings else set(),
        model,
    )
    try:
        write_rows(table, batches)
        yield Measured(*measure(stage, evaluation, table, Path("none"), embeddings, kinds))
    finally:
        table.unlink(missing_ok=True)
