"""The image generator's fast copy against the straightforward network, with the same random weights.

`python -m benchmarks.image_generator [--rounds 5] [--batch 4] [--threads 1] [--size base]`. Both sides take turns; a
figure is the median of the rounds' ratios. A run at the defaults' size and batch is written to
`benchmarks/results/model.json`:

| figure | straightforward / fast |
| --- | --- |
| generator.inference | 256x256 pictures of 4 grids, float32, no gradients |
| generator.inference.gradient | the same, and the gradient of a loss to the grids, as sequence-level training wants it |
| generator.inference.difference | no ratio: largest difference of a pixel in -1..1 |

The straightforward side is `benchmarks.reference_image_generator`; for sizes of Toybox's kind it is the plain
`ImageGenerator`, which is also measured at paper size, without a figure. Figures are those of an ordinary process:
part of the gain is that the fast copy needs no fresh memory. With `--keep-freed-memory` neither side pays for that.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.reference_image_generator import ReferenceImageGenerator
from diptych.model.importers.image_generator import import_image_generator
from diptych.model.inference.image_generator import InferenceImageGenerator
from diptych.model.networks.image_generator import SIZES, ImageGenerator, named_config
from pipelines.runner.threads import keep_freed_memory

AIM = 1.5  # of generator.inference


def trained_like(network: nn.Module) -> None:
    """Weights as large as training makes them: modulation that matters, spectral-norm vectors that have converged."""
    for name, parameter in network.named_parameters():
        if "gamma" in name or "beta" in name or "shared" in name:
            nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)


def networks(size: str) -> dict[str, nn.Module]:
    """The sides, in eval mode: straightforward (paper size only), plain, fast."""
    config = named_config(size)
    if size != "base":
        plain = ImageGenerator(config).eval()
        sides: dict[str, nn.Module] = {"plain": plain}
    else:
        reference = ReferenceImageGenerator(config).train()
        trained_like(reference)
        with torch.no_grad():
            for _ in range(5):
                reference(torch.randn(1, 64, config.feature_dim))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(reference.state_dict(), file := Path(folder) / "G.pth")
            plain = import_image_generator(file, config).generator
        sides = {"straightforward": reference.eval(), "plain": plain}
    plain.to(memory_format=torch.channels_last)
    sides["fast"] = InferenceImageGenerator(plain)
    for network in sides.values():
        network.requires_grad_(False)
    return sides


def paint(network: nn.Module, grids: Tensor) -> None:
    with torch.no_grad():
        network(grids)


def paint_with_gradient(network: nn.Module, grids: Tensor) -> None:
    grids = grids.clone().requires_grad_()
    torch.autograd.grad(network(grids).square().mean(), grids)


def measure(size: str, batch: int, rounds: int) -> dict[str, float]:
    """Run both works on all sides; prints seconds, returns the figures."""
    sides = networks(size)
    first = next(iter(sides))
    grids = torch.randn(batch, 64, named_config(size).feature_dim)
    with torch.no_grad():
        pictures = {name: network(grids) for name, network in sides.items()}
    difference = float((pictures["fast"] - pictures[first]).abs().max())
    print(
        f"largest difference {difference:.1e}; pixels' standard deviation {float(pictures[first].std()):.2f}"
    )
    figures = {"generator.inference.difference": difference}
    works: dict[str, Callable[[nn.Module, Tensor], None]] = {
        "generator.inference": paint,
        "generator.inference.gradient": paint_with_gradient,
    }
    for figure, work in works.items():
        for network in sides.values():
            work(network, grids)

        def timed(
            network: nn.Module, work: Callable[[nn.Module, Tensor], None] = work
        ) -> Callable[[], float]:
            return lambda: seconds(lambda: work(network, grids))

        times = alternate({name: timed(network) for name, network in sides.items()}, rounds)
        figures[figure] = median_ratio(times[first], times["fast"])
        columns = ", ".join(f"{name} {statistics.median(taken):.2f} s" for name, taken in times.items())
        print(f"{figure}: {figures[figure]:.2f} ({columns})")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-freed-memory", action="store_true", help="as the pipeline's stages do")
    arguments = parser.parse_args()
    if arguments.keep_freed_memory:
        keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    figures = measure(arguments.size, arguments.batch, arguments.rounds)
    if (arguments.size, arguments.batch, arguments.keep_freed_memory) == ("base", 4, False):
        print(f"aim of generator.inference: {AIM}")
        record("model", figures)


if __name__ == "__main__":
    main()
