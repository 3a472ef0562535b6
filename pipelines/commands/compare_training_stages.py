"""Compare sequence-level training with the token-level model that it starts from, over several seeds.

`python -m pipelines.commands.compare_training_stages [--seeds 0 1 2]` is no stage: it reads what the stages up to `train_token`
have made and the sections `train_sequence`, `generate` and `evaluate` of params.yaml, trains models/token further once
for each seed, and measures all on the test set as `evaluate` does. With the pipeline's own seed the stage `train_sequence`
has trained it already, if it is up to date. It writes metrics/compare_training_stages.json: every figure of the token-level model,
and mean, standard deviation and gain of the sequence-level ones. Stopped, it goes on where it stood.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
from pathlib import Path

from diptych.eval.figures import flat_values
from diptych.model.pretrained import save_transformer
from pipelines.commands.current import is_current
from pipelines.measuring.figures import EMBEDDINGS
from pipelines.measuring.generation import IMAGE_GENERATOR
from pipelines.measuring.models import read_unified
from pipelines.measuring.test_set import measured_model
from pipelines.runner import stage as stages
from pipelines.runner.errors import one_line_errors
from pipelines.runner.params import check_seeds, read_params
from pipelines.runner.stage import Stage, key_of
from pipelines.runner.threads import prepare_process
from pipelines.train_sequence import TrainSequenceParams, train

NAME = "compare_training_stages"
STAGE_S_OWN = Path("models/sequence")
# what decides figures of a model, and not its training, under whose key they are kept
MEASURING = (
    "models/judge",
    "models/inspector",
    "data/dataset/manifest.parquet",
    "code/generate.json",
    "code/evaluate.json",
)


def main() -> None:
    """Read the parameters, then train, measure, write."""
    parser = argparse.ArgumentParser(description="Compare sequence-level with token-level training.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = list(dict.fromkeys(parser.parse_args().seeds))
    with one_line_errors(NAME):
        check_seeds(seeds)
        stage, params = stages.read_stage("train_sequence", TrainSequenceParams)
        stage = dataclasses.replace(stage, states=NAME)
        prepare_process(stage.threads)
        compare(stage, params, seeds)


def compare(stage: Stage, params: TrainSequenceParams, seeds: list[int]) -> None:
    """Train and measure one seed after the other; what is finished is kept."""
    folder = stage.training_folder
    raw = read_params()
    measuring = key_of([raw["generate"], raw["evaluate"]], MEASURING)[:8]
    own_is_current = stage.seed in seeds and is_current("train_sequence")
    token = measured(folder / f"token-{measuring}.json", Path("models/token"), stage.device)
    rows = []
    for seed in seeds:
        seeded = dataclasses.replace(stage, seed=seed)
        training = dataclasses.replace(params.training, seed=seed)
        model = folder / f"model-{seed}"
        if seed == stage.seed and own_is_current:
            model = STAGE_S_OWN
        if not model.is_dir():
            result, _ = train(seeded, dataclasses.replace(params, training=training), stage.device, str(seed))
            unfinished = folder / f"unfinished-{seed}"
            save_transformer(unfinished, *result)
            unfinished.replace(model)
        rows.append(measured(folder / f"{seed}-{measuring}.json", model, stage.device))
    figures: dict[str, float] = {"seeds": len(seeds)}
    print("| figure | token-level | sequence-level | gain |\n| --- | --- | --- | --- |")
    for name, before in token.items():
        values = [row[name] for row in rows]
        after, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        figures |= {f"{name}.token": before, f"{name}.sequence": after, f"{name}.sequence_std": spread}
        if before:
            figures[f"{name}.gain"] = after / before - 1
            print(f"| {name} | {before:.3f} | {after:.3f} ± {spread:.3f} | {after / before - 1:+.1%} |")
    stage.write_metrics(f"metrics/{NAME}.json", figures)
    shutil.rmtree(EMBEDDINGS, ignore_errors=True)


def measured(file: Path, transformer: Path, device: str) -> dict[str, float]:
    """Figures of a model on the test set, kept in `file`. The seeds of decoding and of R-precision are the same for all."""
    if file.is_file():
        return json.loads(file.read_text())
    with measured_model(
        read_unified(transformer, IMAGE_GENERATOR, device), file.with_suffix(".parquet")
    ) as made:
        metrics = flat_values(made.figures)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(metrics))
    unfinished.replace(file)
    return metrics


if __name__ == "__main__":
    main()
