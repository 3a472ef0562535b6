"""A model of the pipeline painting the test split by one sampler, without any training: X-LXMERT's tables 4
and 6."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.eval.figures import Figure, write_figures
from diptych.model.decoding.decode import paint_captions
from diptych.model.decoding.options import PaintOptions
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.measuring.generate_params import GenerateParams
from pipelines.measuring.generation import IMAGE_GENERATOR, pictures_of
from pipelines.measuring.models import read_unified
from pipelines.measuring.shards import shards_of
from pipelines.measuring.test_set import measured_model
from pipelines.runner.stage import Stage, read_stage
from pipelines.tables.item import TableItem, embeddings, read_entry, run

if TYPE_CHECKING:
    from pipelines.tables.params import TransformerTableParams

TRANSFORMER = Path("models/sequence")


def main(item: TableItem, section: TransformerTableParams) -> None:
    """Write samplers/SAMPLER.json in the table's folder: the figures of the paintings, and `painted.seconds`
    of one."""
    stage, name = item.stage, item.values["sampler"]
    _, generation = read_stage("generate", GenerateParams)
    guidance = generation.paint.guidance if section.guidance is None else section.guidance
    options = replace(read_entry(PaintOptions, item.table, "SAMPLERS", name), guidance=guidance)
    generated = item.unfinished / f"{name}.parquet"
    with measured_model(
        read_unified(TRANSFORMER, IMAGE_GENERATOR, stage.device),
        generated,
        captions=False,
        paint=options,
        embeddings=embeddings(item.table),
    ) as measured:
        figures = measured.figures
    seconds, count = seconds_per_painting(stage, generation, options)
    with stage.write(item.path(f"samplers/{name}.json")) as path:
        write_figures([*figures, Figure("painted.seconds", seconds, count)], path)


def seconds_per_painting(
    stage: Stage, generation: GenerateParams, options: PaintOptions
) -> tuple[float, int]:
    """Time that codes of one painting take in a batch of test captions, and how many these are: on a CPU that
    of the processor, which what runs beside does not change; on a GPU that of the clock."""
    import torch

    model, tokenizer, codebook = load_transformer(TRANSFORMER, stage.device)
    shards, _, to_paint = pictures_of(generation.sets["test"], stage.seed, shards_of)
    prompts = [
        dataset.captions(index)[0]
        for dataset in shards.values()
        for index, key in enumerate(dataset.keys)
        if key in to_paint
    ][: generation.batch_size]
    ids = tokenizer.encode(prompts, generation.caption.length).to(stage.device)
    gpu = stage.device.startswith("cuda")
    clock = time.perf_counter if gpu else time.process_time

    def paint(rows: int) -> float:
        begin = clock()
        with torch.inference_mode(), autocast_context(stage.device, stage.machine.precision):
            paint_captions(model, tokenizer, codebook, ids[:rows], options, list(range(rows)))
        if gpu:
            torch.cuda.synchronize()
        return clock() - begin

    paint(min(2, len(prompts)))
    return paint(len(prompts)) / len(prompts), len(prompts)


if __name__ == "__main__":
    run("sampler", ("sampler",), main)
