"""The single stream against the two streams, both ours, at the papers' sizes: FLOPs that each does in a second.

`python -m benchmarks.single_stream [--rounds 5] [--threads 1] [--size base]`. Random weights, frozen copies, one pass over four
pictures in float32; both take turns; a figure is the median of the rounds, written to `benchmarks/results/model.json`.

| figure | |
| --- | --- |
| single.caption | rate of the single stream / of the two streams: the ninth word of a caption by `masked` attention |
| single.prefix | the same: a picture's keys and values and nine words by `prefix` attention |
| single.paint | the same: codes of all cells from a text of twelve words |
| single.of_peak | the smallest rate of the single stream in these / rate of a large matrix product |
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.floors import floor_of, product_rate
from benchmarks.model import small
from diptych.model.inference.transformer import inference_transformer
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig, named_config
from diptych.model.networks.unified import UnifiedTransformer
from pipelines.runner.threads import keep_freed_memory

PICTURES, WORDS, TEXT = 4, 9, 12


def works(model: UnifiedTransformer, features: Tensor, ids: Tensor) -> dict[str, Callable[[], object]]:
    """One pass of each kind."""
    cells = torch.arange(model.config.cells).expand(PICTURES, -1)
    masked = torch.ones(PICTURES, model.config.cells, dtype=torch.bool)
    position = torch.full((PICTURES,), WORDS)

    def caption() -> Tensor:
        visual = model.encode_visual(features)
        return model.masked_caption_logits(ids[:, : WORDS + 1], None, visual, position)

    def prefix() -> Tensor:
        return model.caption_logits(ids[:, :WORDS], model.encode_visual_prefix(features))

    def paint() -> Tensor:
        text, bias = model.encode_text(ids, None)
        return model.paint_logits(text, bias, model.encode_visual(features, masked), cells)

    return {"single.caption": caption, "single.prefix": prefix, "single.paint": paint}


def configs(size: str) -> dict[str, TransformerConfig]:
    """Both architectures with one vocabulary."""
    base = named_config("base", "single_stream")
    pair = {"single": base, "two": replace(named_config("base"), vocab_size=base.vocab_size)}
    if size == "small":
        shapes = small(pair["two"])
        pair = {
            "two": shapes,
            "single": replace(
                shapes, architecture="single_stream", layers=4, language_layers=0, visual_layers=0, cross_layers=0
            ),
        }
    return pair


@torch.no_grad()
def measure(size: str, rounds: int) -> Mapping[str, float]:
    """All figures."""
    torch.manual_seed(0)
    models = {
        name: inference_transformer(build_transformer(config).eval()) for name, config in configs(size).items()
    }
    config = models["two"].config
    features = torch.randn(PICTURES, config.cells, config.feature_dim)
    ids = torch.randint(config.vocab_size, (PICTURES, TEXT))
    work = {name: works(model, features, ids) for name, model in models.items()}
    print("| figure | median | single stream | two streams | GFLOP single | GFLOP two |")
    print("| --- | --- | --- | --- | --- | --- |")
    figures: dict[str, float] = {}
    shares = []
    for figure in work["single"]:
        counts = {name: floor_of(models[name], work[name][figure]).flops for name in models}
        for name in models:
            work[name][figure]()  # not the first touch of memory
        sides = {name: lambda own=work[name][figure]: seconds(own) for name in models}
        machine = product_rate()
        times = alternate(sides, rounds)
        machine = max(machine, product_rate())
        rates = {name: [counts[name] / each for each in times[name]] for name in models}
        figures[figure] = median_ratio(rates["single"], rates["two"])
        shares.append(statistics.median(rates["single"]) / machine)
        shown = " | ".join(f"{statistics.median(times[name]):.3f} s" for name in ("single", "two"))
        done = " | ".join(f"{counts[name] / 1e9:.0f}" for name in ("single", "two"))
        print(f"| {figure} | {figures[figure]:.2f} | {shown} | {done} |", flush=True)
    figures["single.of_peak"] = min(shares)
    print(f"| single.of_peak | {figures['single.of_peak']:.2f} | | | | |")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=("base", "small"), default="base")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the stages do
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments.size, arguments.rounds)
    if arguments.size == "base":
        record("model", {name: round(value, 4) for name, value in figures.items()})


if __name__ == "__main__":
    main()
