"""What a second node of a Ray cluster brings, and what shards at an address cost.

`python -m benchmarks.cluster [--rounds 3]` needs what `dvc repro shard image_generator` leaves, and two cores. Nodes are of this machine,
with a thread each; sides take turns, and figures are medians of the rounds' ratios, in `benchmarks/results/cluster.json`.

| figure | |
| --- | --- |
| cluster.train | stage 1 at its own batch: steps/s of two processes on two nodes / of one process on one |
| cluster.train_large | the same at four times the batch: what does not grow with it, gradients' sums and the optimizers, weighs less |
| cluster.generate | captions and paintings by random weights of stage 1's size: pictures/s of two nodes / of one |
| cluster.shards_cached | steps/s of stage 1 from the second epoch on: by shards at an address, cached / by shards here |
| cluster.shards_first | samples/s of the first epoch by shards at an address (a disk) / that stage 1 takes on one core |

Starts are not counted: a training counts by the difference of two lengths, pictures by their second half.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.alternate import alternate, median_ratio
from benchmarks.figures import record
from diptych.features.codebook.reading import load_codebook
from diptych.features.shards.reading import ShardDataset
from diptych.features.shards.stream import ShardStream
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.training.initial import random_transformer
from diptych.model.training.processes import current_processes
from diptych.model.training.token import train_token
from pipelines.measuring.generate_params import GenerateParams
from pipelines.measuring.generation import IMAGE_GENERATOR, Making
from pipelines.measuring.models import CodeModel
from pipelines.runner import ray_processes
from pipelines.runner.errors import one_line_errors
from pipelines.runner.processes import training_device
from pipelines.runner.spread import spread
from pipelines.runner.stage import Stage, read_stage
from pipelines.train_token import TrainTokenParams

SHARDS = Path("data/shards")
WARM_STEPS, STEPS, LARGE = 2, 40, 4
BATCH, BATCHES = 10, 24  # pictures
NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


def transformer(params: TrainTokenParams) -> tuple[Any, Any, torch.Tensor, ShardDataset]:
    """Random weights of stage 1's size, its tokenizer, the codebook, and the train split."""
    train = ShardDataset(SHARDS, "train")
    codebook = torch.from_numpy(load_codebook(Path("data/codebook")))
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    model, tokenizer = random_transformer(
        params.network, params.architecture, params.caption_attention, params.image_features, captions,
        params.tokenizer.min_count, codebook, seed=0,
    )  # fmt: skip
    return model, tokenizer, codebook, train


def rate_of(params: TrainTokenParams, batch: int, shards: ShardDataset | None, device: str) -> float:
    """Steps a second of stage 1 at `batch` times its batch; null: from the shards here."""
    model, tokenizer, codebook, train = transformer(params)
    training = params.training
    plain = replace(
        training, evaluation=None, questions=None,
        caption_batch_size=batch * training.caption_batch_size, paint_batch_size=batch * training.paint_batch_size,
    )  # fmt: skip
    elapsed = []
    for steps in (WARM_STEPS, STEPS // batch):
        start = time.perf_counter()
        train_token(
            replace(plain, steps=steps), model, tokenizer, codebook, shards or train, None, device
        )
        elapsed.append(time.perf_counter() - start)
    return (STEPS // batch - WARM_STEPS) / (elapsed[1] - elapsed[0])


def take_steps(stage: Stage, params: TrainTokenParams) -> None:
    """What each process of a training does; process 0 writes how many steps it takes a second."""
    torch.set_num_threads(1)
    with training_device(stage) as device:
        rates = [rate_of(params, batch, None, device) for batch in (1, LARGE)]
        if current_processes().rank == 0:
            written_rates().write_text(json.dumps(rates))


def written_rates() -> Path:
    """Where a training's process 0, which other processes start, leaves them: a name that every process of a user knows."""
    return Path(tempfile.gettempdir(), f"diptych-steps-{os.getuid()}.json")


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """The address of a cluster: a head that works on nothing, and so many nodes of one core."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        for _ in range(nodes):
            started.add_node(**NODE)
        yield started.address
    finally:
        started.shutdown()


def trained(address: str, processes: int) -> list[float]:
    """Steps a second of stage 1, at its batch and at a large one."""
    stage, _ = read_stage("train_token", TrainTokenParams)
    machine = replace(stage.machine, ray_address=address, processes=processes, threads=processes, device="cpu")
    written_rates().unlink(missing_ok=True)
    ray_processes.start_and_wait(
        replace(stage, machine=machine), "train_token", TrainTokenParams, take_steps, ()
    )
    _shut_down()
    rates: list[float] = json.loads(written_rates().read_text())
    written_rates().unlink()
    return rates


def generated(address: str, making: Making) -> float:
    """Pictures a second of the second half that are captioned and painted: by then every worker has long started."""
    stage, _ = read_stage("generate", GenerateParams)
    stage = replace(stage, machine=replace(stage.machine, ray_address=address, device="cpu"))
    keys = making.datasets["train"].keys
    pieces = [("train", list(range(start, start + BATCH))) for start in range(0, BATCHES * BATCH, BATCH)]
    assert len(keys) >= BATCHES * BATCH
    ends = []
    for _ in spread(stage, making, pieces):
        ends.append(time.perf_counter())
    half = len(ends) // 2
    return BATCH * (len(ends) - half) / (ends[-1] - ends[half - 1])


def making_of() -> Making:
    """Captions and paintings by random weights."""
    _, token = read_stage("train_token", TrainTokenParams)
    stage, params = read_stage("generate", GenerateParams)
    model, tokenizer, codebook, train = transformer(token)
    chosen = set(train.keys[: BATCHES * BATCH])
    drawn = CodeModel(model.eval(), tokenizer, codebook, load_image_generator(IMAGE_GENERATOR, "cpu"))
    params = replace(
        params, caption=replace(params.caption, samples=1), paint=replace(params.paint, samples=1)
    )
    return Making(drawn, None, {"train": train}, chosen, chosen, params, stage.seed, device="cpu", precision=stage.machine.precision)


def read_epoch(data: ShardDataset, batch_size: int, epoch: int) -> float:
    """Samples a second of an epoch of features, codes and captions, as a training reads them."""
    steps = len(data) // batch_size
    start = time.perf_counter()
    for _ in ShardStream(data, batch_size, seed=0, start=epoch * steps, stop=(epoch + 1) * steps):
        pass
    return steps * batch_size / (time.perf_counter() - start)


def _shut_down() -> None:
    import ray

    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    _, params = read_stage("train_token", TrainTokenParams)
    with tempfile.TemporaryDirectory() as scratch:
        taken = params.training.caption_batch_size + params.training.paint_batch_size  # pictures a step
        there = Path(scratch) / "there"
        shutil.copytree(SHARDS, there)
        caches = [Path(scratch, f"cache{number}") for number in range(rounds)]
        away, *others = (ShardDataset(f"file://{there}", "train", cache=cache) for cache in caches)
        first = [read_epoch(data, taken, 0) for data in (away, *others)]
        sides = {"here": lambda: rate_of(params, 1, None, "cpu"), "away": lambda: rate_of(params, 1, away, "cpu")}
        read = alternate(sides, rounds)
        figures["cluster.shards_cached"] = median_ratio(read["away"], read["here"])
        figures["cluster.shards_first"] = median_ratio(first, [taken * steps for steps in read["here"]])
    making = making_of()
    with cluster(1) as one, cluster(2) as two:
        rates = alternate({"one": lambda: trained(one, 1), "two": lambda: trained(two, 2)}, rounds)
        for place, figure in enumerate(("cluster.train", "cluster.train_large")):
            figures[figure] = median_ratio(*([rate[place] for rate in rates[name]] for name in ("two", "one")))
        made = alternate(
            {"one": lambda: generated(one, making), "two": lambda: generated(two, making)}, rounds
        )
        figures["cluster.generate"] = median_ratio(made["two"], made["one"])
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    record("cluster", {name: round(value, 4) for name, value in figures.items()})


if __name__ == "__main__":
    with one_line_errors("benchmarks.cluster"):
        main()
