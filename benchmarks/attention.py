"""Captioning by ``masked`` and by ``prefix`` attention, trained on Toybox: equal steps and equal time.

`python -m benchmarks.attention [--steps 300] [--seeds 0 1 2]` needs data/shards and data/codebook, which `make run`
leaves. Both schemes train the default network on captions alone, by the default settings but for AdamW as the only optimizer,
with the same batches; then they caption the val split greedily. Time is that of one thread of the processor, which other
programs on the machine do not change. Every run is kept in .cache/attention and not repeated with the same data, settings and code;
the figures go to benchmarks/results/attention.json.

| run | steps |
| --- | --- |
| prefix | ``--steps`` |
| masked, equal steps | ``--steps`` |
| masked, equal time | as many as take the time of prefix |
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks.figures import record
from diptych.eval.captions.cider import CiderDReward
from diptych.features.codebook.reading import load_codebook
from diptych.features.shards.reading import ShardDataset
from diptych.model.decoding.caption import decode_captions, encode_images
from diptych.model.training.initial import random_transformer
from diptych.model.training.scst import reference_words
from diptych.model.training.token import TokenTrainingConfig, train_token
from pipelines.runner.errors import one_line_errors
from pipelines.runner.stage import key_of
from pipelines.runner.writing import writing

RUNS = Path(".cache/attention")
BATCH_SIZE = 50


def captioning(
    attention: str, steps: int, seed: int, params: dict[str, Any], made_of: str
) -> dict[str, float]:
    """Train and measure once: ``cider_d`` of greedy val captions, and the ``seconds`` of training. made_of: a digest of ``params``,
    data and code."""
    file = RUNS / f"{attention}-{steps}-{seed}-{made_of}.json"
    if file.is_file():
        return json.loads(file.read_text())
    train, val = (ShardDataset(Path("data/shards"), split) for split in ("train", "val"))
    codebook = torch.from_numpy(load_codebook(Path("data/codebook")))
    texts = [caption for index in range(len(train)) for caption in train.captions(index)]
    model, tokenizer = random_transformer(
        params["network"], params["architecture"], attention, "two_level", texts,
        params["tokenizer"]["min_count"], codebook, seed,
    )  # fmt: skip
    changes = {
        "steps": steps, "caption_share": 1.0, "questions": None, "muon": 0.0, "evaluation": None,
        "precision": "float32", "seed": seed, "checkpoint_seconds": 3600.0,
    }  # fmt: skip
    config = TokenTrainingConfig(**{**params["training"], **changes})
    start = time.process_time()
    train_token(config, model, tokenizer, codebook, train, None, "cpu")
    seconds = time.process_time() - start
    captions = []
    for first in range(0, len(val), BATCH_SIZE):
        features = torch.from_numpy(val.grid(list(range(first, min(first + BATCH_SIZE, len(val)))))).float()
        images = encode_images(model, features)
        written = decode_captions(model, tokenizer, images, config.caption_length)
        captions += [tokenizer.words(row) for row in written.ids]
    reward = CiderDReward(reference_words(tokenizer, val, config.caption_length))
    measured = {"cider_d": float(reward.reward(range(len(val)), captions).mean()), "seconds": seconds}
    with writing(str(file)) as unfinished:
        unfinished.write_text(json.dumps(measured))
    print(f"{attention}, {steps} steps, seed {seed}: {measured}", flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = YAML(typ="safe").load(Path("params.yaml"))["train_token"]
    made_of = key_of(params, ("data/shards", "data/codebook", "code/train_token.json"))
    rows: dict[str, list[dict[str, float]]] = {
        "prefix": [],
        "masked, equal steps": [],
        "masked, equal time": [],
    }
    for seed in arguments.seeds:
        prefix = captioning("prefix", arguments.steps, seed, params, made_of)
        equal_steps = captioning("masked", arguments.steps, seed, params, made_of)
        # of the first seed, so that all seeds take the same number of steps
        if not rows["prefix"]:
            steps = round(arguments.steps * prefix["seconds"] / equal_steps["seconds"])
        equal_time = captioning("masked", steps, seed, params, made_of)
        for row, measured in zip(rows.values(), (prefix, equal_steps, equal_time), strict=True):
            row.append(measured)
    results = {}
    print(
        "| run | steps | seconds | CIDEr-D, mean and standard deviation over seeds |\n| --- | --- | --- | --- |"
    )
    for (name, measured), count in zip(rows.items(), (arguments.steps, arguments.steps, steps), strict=True):
        scores = [run["cider_d"] for run in measured]
        results[name] = {
            "steps": count,
            "seconds": statistics.mean(run["seconds"] for run in measured),
            "cider_d": statistics.mean(scores),
            "cider_d_std": statistics.stdev(scores) if len(scores) > 1 else None,
            "cider_d_by_seed": dict(zip(map(str, arguments.seeds), scores, strict=True)),
        }
        spread = "" if len(scores) < 2 else f" ± {statistics.stdev(scores):.2f}"
        print(
            f"| {name} | {count} | {results[name]['seconds']:.0f} | {statistics.mean(scores):.2f}{spread} |"
        )
    record("attention", results)


if __name__ == "__main__":
    with one_line_errors("benchmarks.attention"):
        main()
