"""Captions and paintings by one system and seed, of whatever family, measured as `generate` and `evaluate` do it; and what they cost."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diptych.eval.figures import Figure, not_run
from diptych.features.pictures import ManifestPictures
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.l_verse.params import Params as LVerseParams
from pipelines.l_verse.params import tokenized
from pipelines.measuring.baselines import CaptionerModel, GANModel, PretrainedModel
from pipelines.measuring.clips import read_clip
from pipelines.measuring.figures import KINDS, MANIFEST, EvaluateParams, with_mends
from pipelines.measuring.generate_params import GenerateParams
from pipelines.measuring.generation import IMAGE_GENERATOR
from pipelines.measuring.models import read_l_verse, read_unified
from pipelines.measuring.shards import shards_of
from pipelines.measuring.test_set import measured_model
from pipelines.runner.memory import peak_resident, resident
from pipelines.runner.params import provided_by, read_params, read_section
from pipelines.runner.stage import read_stage
from pipelines.runner.threads import prepare_process
from pipelines.tables.described import described
from pipelines.tables.item import TableItem, embeddings, read_entry, run
from pipelines.tables.measured import write_examples, write_measured, write_pictures

if TYPE_CHECKING:
    from torch import nn

    from diptych.eval.scorers.clip import Clip
    from pipelines.measuring.models import GenerativeModel
    from pipelines.tables.systems import SystemsTableParams

TIMED = 8  # captions, or paintings, of which the median counts
MEGABYTE = 2**20


@dataclass(frozen=True)
class System:
    """An entry of a table's SYSTEMS.

    family: who reads the model directory among the item's dependencies. does: what is asked of it. features: what BUTD reads.
    steps: of mask-predict, without guidance, where it paints otherwise than `generate.paint` says.
    """

    family: Literal["unified", "pretrained", "butd", "dm_gan", "l_verse"]
    does: Literal["both", "captions", "paintings"] = "both"
    features: Literal["grid", "regions"] = "grid"
    steps: int | None = None


@dataclass(frozen=True)
class Running:
    """A system that is ready. network: of all its trained numbers. read: a split as it reads it."""

    model: GenerativeModel
    network: nn.Module
    read: Callable[[str], Any]
    caption: CaptionOptions
    paint: PaintOptions


def main(item: TableItem, section: SystemsTableParams) -> None:
    """Write measured/SYSTEM-SEED in the table's folder, as `measured` does, with the figures of :func:`costs`."""
    name = item.values["system"]
    system = read_entry(System, item.table, "SYSTEMS", name)
    own = costs(item, system)
    running = started(item, system)
    generated = item.unfinished / f"{name}-{item.stage.seed}.parquet"
    with (
        measured_model(
            running.model,
            generated,
            read=running.read,
            captions=system.does != "paintings",
            paintings=system.does != "captions",
            caption=running.caption,
            paint=running.paint,
            pictures=section.pictures,
            evaluation=replace(read_stage("evaluate", EvaluateParams)[1], java=section.java),
            embeddings=embeddings(item.table),
            kinds=[kind for kind in KINDS if kind != "reconstruction" or system.family != "dm_gan"],
        ) as measured,
        item.stage.write(f"{item.table.measured}/{name}-{item.stage.seed}") as folder,
    ):
        figures = with_mends(measured.figures, section.java, f"{item.table.name}.java")
        write_measured(folder, [*figures, *own], running.network)
        write_pictures(folder / "pictures.parquet", measured.rows)
        write_examples(folder / "examples.parquet", generated, section.examples)
        if system.does != "captions":
            write_examples(folder / "paintings.parquet", generated, section.study)


def started(item: TableItem, system: System) -> Running:
    """The system of the model directory among the item's dependencies."""
    (folder,) = (Path(dep) for dep in item.deps if Path(dep).parent.name == "models" and "ablations" in dep)
    device, (_, generation) = item.stage.device, read_stage("generate", GenerateParams)
    caption, paint = generation.caption, generation.paint
    if system.steps is not None:
        paint = PaintOptions(steps=system.steps)
    if system.family == "unified":
        unified = read_unified(folder, IMAGE_GENERATOR, device)
        return Running(unified, unified.model, shards_of, caption, paint)  # type: ignore[attr-defined]
    if system.family == "pretrained":
        generator = load_image_generator(IMAGE_GENERATOR, device)
        pretrained = PretrainedModel(*load_transformer(folder, device), generator)
        caption = CaptionOptions(length=caption.length)  # Gibbs sampling has none of the others
        return Running(pretrained, pretrained.model, shards_of, caption, paint)
    if system.family == "butd":
        captioner = CaptionerModel.read(folder, device)
        return Running(
            captioner,
            captioner.model,
            lambda split: described(item, system.features, split),
            caption,
            paint,
        )
    if system.family == "dm_gan":
        gan = GANModel.read(folder, device)
        return Running(
            gan, gan.painter, lambda split: ManifestPictures(MANIFEST, split), caption, PaintOptions()
        )
    provided = provided_by(item.stage.machine, item.stage.seed)
    own = read_section(LVerseParams, "l_verse", read_params(), provided=provided).generate
    l_verse = read_l_verse(folder, device)
    return Running(l_verse, l_verse.model, tokenized, own.caption, own.paint)  # type: ignore[attr-defined]


def costs(item: TableItem, system: System) -> list[Figure]:
    """Of captions and of paintings, as far as the system makes them: `minutes` of all its trainings (from their cost files among the
    item's dependencies), and of one at a time `milliseconds` of the processor (of a GPU's clock) and `megabytes` that a process takes
    more than before the system was loaded."""
    spent = [Path(dep) for dep in item.deps if dep.endswith(".json") and not dep.startswith("code/")]
    minutes = sum(json.loads(path.read_text())["minutes"] for path in spent)
    figures = []
    for name, makes in (("caption", "captions"), ("painted", "paintings")):
        if system.does not in ("both", makes):
            continue
        # a process for each, which knows nothing of the other
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            milliseconds, megabytes = pool.submit(measured_alone, item, system, makes).result()
        figures += [
            Figure(f"{name}.minutes", minutes, 1),
            Figure(f"{name}.milliseconds", milliseconds, TIMED),
            not_run(f"{name}.megabytes", "this system does not say how much memory a process takes")
            if megabytes is None
            else Figure(f"{name}.megabytes", megabytes, 1),
        ]
    return figures


def measured_alone(item: TableItem, system: System, makes: str) -> tuple[float, float | None]:
    """Milliseconds and megabytes of captions, or of paintings, in a process of their own."""
    prepare_process(item.stage.threads)
    import torch  # so that it does not count

    torch.ones(2, 2) @ torch.ones(2, 2)
    before = resident()
    make = maker(item, started(item, system), makes)
    seconds = [timed(make, index, item.stage.device) for index in range(TIMED + 1)][1:]
    peak = peak_resident()
    megabytes = None if before is None or peak is None else (peak - before) / MEGABYTE
    return 1000 * statistics.median(seconds), megabytes


def maker(item: TableItem, running: Running, makes: str) -> Callable[[int], None]:
    """What makes a caption, or a painting, of the i-th test picture."""
    import torch

    stage, dataset = item.stage, running.read("test")
    if makes == "captions":

        def caption(index: int) -> None:
            running.model.captions(dataset, [index % len(dataset.keys)], running.caption, [index])

        work = caption
    else:
        scorer: Clip | None = None
        if running.paint.samples > 1:
            scorer = read_clip(Path("models/scorer"), stage.device)
        tokenizer = running.model.tokenizer

        def paint(index: int) -> None:
            prompts = [dataset.captions(index % len(dataset.keys))[0]]
            ids = tokenizer.encode(prompts, running.caption.length).to(stage.device)
            running.model.paint(prompts, ids, running.paint, [index], scorer)

        work = paint

    def make(index: int) -> None:
        with torch.inference_mode(), autocast_context(stage.device, stage.machine.precision):
            work(index)

    return make


def timed(make: Callable[[int], None], index: int, device: str) -> float:
    """Seconds of the processor, which what runs beside does not change; on a GPU of the clock."""
    import torch

    gpu = device.startswith("cuda")
    clock = time.perf_counter if gpu else time.process_time
    begin = clock()
    make(index)
    if gpu:
        torch.cuda.synchronize()
    return clock() - begin


if __name__ == "__main__":
    run("compared", ("system", "seed"), main)
