"""Compare two trainings of the image generator: with the adversarial game, and by reconstruction alone.

`python -m pipelines.commands.compare_image_generators [--steps N]` is no stage: it reads what the stages up to `judge` have made
and the `image_generator` section of params.yaml. The stage's own network, which has to be up to date, is one side; the other is
trained here, from the same weights, on the same batches, for equally many steps. Another number of steps trains both. Both
are measured on the val split. It writes comparison/ (a page and two contact sheets) and
metrics/compare_image_generators.json. Stopped, it goes on where it stood.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.comparisons.page import write_comparison
from diptych.eval.images.frechet import frechet_distance
from diptych.eval.images.retrieval import r_precision
from diptych.eval.report.sheet import contact_sheet
from diptych.eval.scorers.inspector import load_inspector
from diptych.model.decoding.clip_rerank import embed_captions, embed_pictures
from diptych.model.networks.image_generator import load_image_generator, save_image_generator
from diptych.model.pixels import png
from pipelines.commands.current import is_current
from pipelines.image_generator import ImageGeneratorParams, reconstruct, train, val_metrics
from pipelines.measuring.clips import read_clip
from pipelines.measuring.shards import shards_of
from pipelines.runner import stage as stages
from pipelines.runner.errors import one_line_errors
from pipelines.runner.params import ParameterError
from pipelines.runner.stage import Stage
from pipelines.runner.threads import prepare_process

if TYPE_CHECKING:
    from torch import Tensor


# The stage whose parameters, inputs and training these are.
NAME = "image_generator"
PICTURES = 24
BATCH_SIZE = 100


def main() -> None:
    """Read the parameters, then train, measure, write. Ends with one line and status 1 where a user can mend it."""
    parser = argparse.ArgumentParser(description="Compare two trainings of the image generator.")
    parser.add_argument(
        "--steps", type=int, help="of each training; image_generator.training.steps by default"
    )
    steps = parser.parse_args().steps
    with one_line_errors("compare_image_generators"):
        stage, params = stages.read_stage(NAME, ImageGeneratorParams)
        stage = dataclasses.replace(stage, states="compare_image_generators")
        if params.training.game is None:
            raise ParameterError(
                f"params.yaml: {NAME}.training.game: expected a section to compare with, found null"
            )
        length = params.training.steps if steps is None else steps
        own = length == params.training.steps
        if own and not is_current(NAME):
            raise ParameterError(
                f"models/{NAME} is not of the present parameters and inputs: run `dvc repro {NAME}` first"
            )
        prepare_process(stage.threads)
        compare(stage, with_steps(params, length), own)


def with_steps(params: ImageGeneratorParams, steps: int) -> ImageGeneratorParams:
    """The same with another length; the warm start keeps its share."""
    training = params.training
    assert training.game is not None
    warm = round(training.game.warm_start_steps * steps / training.steps)
    game = dataclasses.replace(training.game, warm_start_steps=warm)
    return dataclasses.replace(params, training=dataclasses.replace(training, steps=steps, game=game))


def compare(stage: Stage, params: ImageGeneratorParams, own: bool) -> None:
    """Both trainings, one after the other; what is finished is not trained again, nor, with `own`, what the stage made."""
    versions = {
        "reconstruction": dataclasses.replace(
            params, training=dataclasses.replace(params.training, game=None)
        ),
        "adversarial": params,
    }
    val = shards_of("val")
    indices = list(range(min(params.val_images, len(val))))
    objects = [val.meta(index)["objects"] for index in indices]
    judge = read_clip(Path("models/judge"), stage.device)
    inspects = any(Path("models/inspector").iterdir())  # empty for data without attributes
    inspector = load_inspector(Path("models/inspector"), stage.device) if inspects else None
    texts = batched(partial(embed_captions, judge), [val.captions(index)[0] for index in indices], BATCH_SIZE)

    def judged(images: Tensor, embeddings: Tensor) -> dict[str, float]:
        figures = {"r_precision_judge": r_precision(embeddings, texts, stage.seed)[0]}
        if inspector:
            figures["inspector.main_object"] = inspector.accuracy(images, objects)["main_object"]
        return figures

    encode = partial(embed_pictures, judge)
    folder = stage.training_folder / str(params.training.steps)
    figures: dict[str, dict[str, float]] = {}
    sheets = {}
    real: Tensor | None = None
    for name, version in versions.items():
        if own and version is params:
            model, facts = Path(f"models/{NAME}"), json.loads(Path(f"metrics/stages/{NAME}.json").read_text())
            minutes = float(facts["minutes"])
        else:
            model, minutes = folder / name / "model", trained(stage, version, folder / name)
        generator = load_image_generator(model, stage.device)
        painted = reconstruct(generator, val, indices, stage.device)
        if real is None:
            real = val.images(indices, generator.config.image_size)
            real_embeddings = batched(encode, real, BATCH_SIZE)
            figures["real"] = judged(real, real_embeddings)
        embeddings = batched(encode, painted, BATCH_SIZE)
        detected = val_metrics(generator, params.val_images, stage.device)
        figures["real"] |= {
            key.removeprefix("real."): value for key, value in detected.items() if key.startswith("real.")
        }
        figures[name] = {
            "steps": params.training.steps,
            "minutes": minutes,
            **{key.removeprefix("reconstruction."): v for key, v in detected.items() if "real." not in key},
            "frechet_judge": frechet_distance(embeddings, real_embeddings),
            **judged(painted, embeddings),
        }
        rows = [
            {"real": png(real[row]), "painted": png(painted[row])} for row in range(min(PICTURES, len(real)))
        ]
        sheets[name] = contact_sheet(rows, columns=3, views=("real", "painted"))

    stage.write_metrics(
        "metrics/compare_image_generators.json",
        {f"{name}.{key}": value for name, row in figures.items() for key, value in row.items()},
    )
    with stage.write("comparison") as written:
        written.mkdir()
        for name, sheet in sheets.items():
            sheet.save(written / f"{name}.png")
        names = dict.fromkeys(key for row in figures.values() for key in row)
        write_comparison(
            written / "index.html",
            "The image generator with and without the adversarial game",
            f"The same network from the same weights (seed {stage.seed}), {params.training.steps} steps of batch "
            f"{params.training.batch_size} each; measured on {len(indices)} pictures of the val split, which the "
            "Fréchet distance depends on. Left in each pair the real picture, right what was repainted from its codes.",
            {key: {name: row.get(key) for name, row in figures.items()} for key in names},
            sheets,
        )
    shutil.rmtree(folder)
    print(f"Comparison: {Path('comparison/index.html').resolve()}")


def batched(encode: Callable[[Any], Tensor], items: Any, size: int) -> Tensor:
    """`encode` over slices of `items`, gathered on the CPU: all at once would not fit."""
    import torch

    with torch.inference_mode():
        return torch.cat([encode(items[start : start + size]).cpu() for start in range(0, len(items), size)])


def trained(stage: Stage, params: ImageGeneratorParams, folder: Path) -> float:
    """Train into `folder`/model unless an earlier run has; returns the minutes of the run that ended it."""
    facts = folder / "facts.json"
    if facts.is_file():
        return float(json.loads(facts.read_text())["minutes"])
    started = time.monotonic()
    generator, _ = train(stage, params, stage.device, os.path.relpath(folder, stage.training_folder))
    save_image_generator(folder / "model", generator)
    minutes = (time.monotonic() - started) / 60
    facts.write_text(json.dumps({"minutes": minutes}))
    return minutes


if __name__ == "__main__":
    main()
