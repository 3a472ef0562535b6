"""A step of SCST against the reference code's way, at the papers' size with the same weights and pictures.

`python -m benchmarks.scst [--rounds 3]`: two pictures, captions of 16 words, float32, with clipping and AdamW, both sides
in turns. The figures go to `benchmarks/results/model.json`.

| figure | reference / ours |
| --- | --- |
| scst.prefix | seconds, prefix attention |
| scst.masked | seconds, the papers' attention |
| scst.activation_memory | the larger of both of ours / reference: bytes that autograd keeps, at their peak |

The reference decodes twice, greedily and by sampling, with a full pass of all heads on all positions for every word, and
keeps the graphs of all passes. Random weights write no full stop, so all captions have 16 words.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.model import LENGTH, WORDS, Sides, small
from diptych.eval.captions.cider import CiderDReward
from diptych.model.networks.config import named_config
from diptych.model.objectives.scst import UnifiedPolicy
from diptych.model.training.contracts import Piece
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.scst import scst_parts
from diptych.model.training.sequence import SequenceTrainingConfig
from pipelines.runner.threads import keep_freed_memory

AIMS = {"scst.prefix": 9.0, "scst.masked": 2.0, "scst.activation_memory": 0.1}
SETTINGS = SequenceTrainingConfig(
    steps=1, scst_steps=1, clip_steps=0, paint_steps=0, scst_batch_size=2, clip_batch_size=1, paint_batch_size=1,
    caption_length=LENGTH, learning_rate=0.0, clip_norm=1.0, ema_decay=0.0, label_smoothing=0.2, least_masked=0.0,
    text_drop=0.0, sample_temperature=1.0, mask_predict_steps=4, guidance=1.0, gumbel_temperature=1.0,
    precision="float32", seed=0, checkpoint_seconds=0.0,
)  # fmt: skip


class KeptBytes:
    """Inside the block: bytes of what autograd keeps for backward, weights aside, now and at the peak."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.holders: dict[int, int] = {}
        self.now = self.peak = 0

    def __enter__(self) -> Self:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def keep(self, tensor: Tensor) -> Kept:
        return Kept(self, tensor)


class Kept:
    """A kept tensor; several may share their memory."""

    def __init__(self, counter: KeptBytes, tensor: Tensor) -> None:
        self.tensor, self.counter = tensor, counter
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        if self.key in counter.weights:
            return
        counter.holders[self.key] = counter.holders.get(self.key, 0) + 1
        if counter.holders[self.key] == 1:
            counter.now += self.size
            counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        holders = self.counter.holders
        if self.key in holders:
            holders[self.key] -= 1
            if not holders[self.key]:
                del holders[self.key]
                self.counter.now -= self.size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=("base", "small"), default="base")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the stages do; for both sides
    torch.set_num_threads(arguments.threads)
    config = named_config("base") if arguments.size == "base" else small(named_config("base"))
    sides = Sides(replace(config, dropout=0.0), seed=0)
    tokenizer, features = sides.tokenizer, sides.images(2)
    generator = np.random.default_rng(0)
    first = tokenizer.stop + 1
    references = [
        [generator.integers(first, config.vocab_size, 12).tolist() for _ in range(5)] for _ in range(100)
    ]
    reward = CiderDReward(references)

    def rewards(ids: Tensor) -> Tensor:
        return torch.from_numpy(reward.reward([0, 1], [tokenizer.words(row) for row in ids]))

    def reference() -> None:
        special = (tokenizer.cls, tokenizer.sep, tokenizer.mask)
        sides.step("reference", lambda: sides.reference.scst_loss(features, WORDS, special, rewards))

    def ours(attention: str) -> Callable[[], None]:
        def step() -> None:
            sides.ours.config = replace(sides.ours.config, caption_attention=attention)
            parts = scst_parts(SETTINGS, UnifiedPolicy(sides.ours, tokenizer), tokenizer, features, [0, 1], [5, 6], reward, 1.0)
            add_gradients([Piece(1.0, 2, lambda: parts)])
            nn.utils.clip_grad_norm_(sides.ours.parameters(), 1.0)
            sides.optimizers["ours"].step()
            sides.optimizers["ours"].zero_grad()

        return step

    works = {"reference": reference, "prefix": ours("prefix"), "masked": ours("masked")}
    peaks = {}
    for name, work in works.items():
        with KeptBytes(sides.reference if name == "reference" else sides.ours) as kept:
            work()
        peaks[name] = kept.peak
    times = alternate(
        {name: lambda work=work: seconds(work) for name, work in works.items()}, arguments.rounds
    )
    figures = {
        "scst.prefix": median_ratio(times["reference"], times["prefix"]),
        "scst.masked": median_ratio(times["reference"], times["masked"]),
        "scst.activation_memory": max(peaks["prefix"], peaks["masked"]) / peaks["reference"],
    }
    print("| | seconds | MiB kept by autograd |\n| --- | --- | --- |")
    for name, measured in times.items():
        print(f"| {name} | {statistics.median(measured):.2f} | {peaks[name] / 2**20:.0f} |")
    print("| figure | median | aim |\n| --- | --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.3g} | {AIMS[name]} |")
    if arguments.size == "base":
        record("model", figures)


if __name__ == "__main__":
    main()
