"""X-LXMERT's tables 4 and 6 in miniature: models/sequence painting the test split by one sampler, without any training."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from diptych.eval.figures import Figure, write_figures
from diptych.model.decoding.decode import paint_captions
from diptych.model.decoding.options import PaintOptions
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.generate import GenerateParams, pictures_of
from pipelines.measuring.test_set import measured_model
from pipelines.runner.stage import UNFINISHED_STORE, Stage, read_stage
from pipelines.tables.item import EMBEDDINGS, OUTPUTS, Table1Params, run

TRANSFORMER = Path("models/sequence")
# of a grid of 8 x 8 cells: 200 steps are 136 more than there are cells
SAMPLERS: dict[str, PaintOptions] = {
    "mask_predict_1": PaintOptions(steps=1),
    "mask_predict_4": PaintOptions(steps=4),
    "mask_predict_10": PaintOptions(steps=10),
    "rows": PaintOptions(method="rows"),
    "random": PaintOptions(method="random"),
    "random_200": PaintOptions(method="random", extra_steps=136),
    "easiest": PaintOptions(method="easiest"),
}


def main(stage: Stage, table: Table1Params) -> None:
    """Write ablations/samplers/SAMPLER.json: the figures of the paintings, and `painted.seconds` of one."""
    name = stage.item["sampler"]
    _, generation = read_stage("generate", GenerateParams)
    guidance = generation.paint.guidance if table.guidance is None else table.guidance
    options = replace(SAMPLERS[name], guidance=guidance)
    generated = UNFINISHED_STORE / "ablations" / f"{name}.parquet"
    with measured_model(
        TRANSFORMER, generated, captions=False, paint=options, embeddings=EMBEDDINGS
    ) as measured:
        figures = measured.figures
    seconds, count = seconds_per_painting(stage, generation, options)
    with stage.write(f"{OUTPUTS}/samplers/{name}.json") as path:
        write_figures([*figures, Figure("painted.seconds", seconds, count)], path)


def seconds_per_painting(
    stage: Stage, generation: GenerateParams, options: PaintOptions
) -> tuple[float, int]:
    """Time that codes of one painting take in a batch of test captions, and how many these are: on a CPU that of the
    processor, which what runs beside does not change; on a GPU that of the clock."""
    import torch

    model, tokenizer, codebook = load_transformer(TRANSFORMER, stage.device)
    shards, _, to_paint = pictures_of(generation.sets["test"], stage.seed)
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
