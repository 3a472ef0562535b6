"""BiART: painting from caches against whole passes, and a training step against the machine's matrix products.

`python -m benchmarks.l_verse [--rounds 5] [--threads 2] [--size toybox]`. Random weights, float32. Both painters take turns and paint
the same codes; figures are medians of the rounds, in `benchmarks/results/l_verse.json`.

| figure | |
| --- | --- |
| l_verse.paint | seconds of all tokens of 16 captions by a whole pass for each token / from caches |
| l_verse.step | rate of a training step's products (one of each order, gradients included) / rate of a large matrix product |

`--size base` prints what the paper's size takes instead, counted and not run: FLOPs and memory of a training step of 1,088 tokens, and
hours of 30 epochs of COCO's training captions in each order.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.floors import product_rate
from benchmarks.model import numbered_tokenizer
from diptych.model.decoding.biart import paint_texts
from diptych.model.decoding.options import PaintOptions
from diptych.model.decoding.sampling import LIKELIEST
from diptych.model.devices import Texts
from diptych.model.networks.biart import GENERATED, BiART, named_config
from diptych.model.objectives.bidirectional import caption_losses, painting_losses
from diptych.model.tokenizer import CaptionTokenizer
from pipelines.runner.threads import keep_freed_memory

CAPTIONS, WORDS = 16, 10
# of a training step: pictures, captions of each that is captioned
PICTURES, OF_EACH = 24, 4
VOCABULARY, CODES, GRID = 109, 1024, 8
# base: the paper's vocabularies, tokens and schedule, and bytes of a weight in training: float32, its gradient and AdamW's two means
BASE = {"vocab_size": 49_808, "codebook_size": 8192, "grid_size": 32}
TRAINING_CAPTIONS, EPOCHS, TRAINING_BYTES = 566_747, 30, 16
H100_FLOPS, EFFICIENCY = 989e12, 0.4


@dataclass(frozen=True)
class Works:
    """A BiART and what it paints and learns."""

    model: BiART
    tokenizer: CaptionTokenizer
    ids: Tensor
    codes: Tensor

    @torch.no_grad()
    def cached(self) -> Tensor:
        """Painted as the decoder does."""
        return paint_texts(self.model, self.tokenizer, self.ids[:CAPTIONS], PaintOptions(method="rows")).codes

    @torch.no_grad()
    def uncached(self) -> Tensor:
        """Painted by a pass over text and all tokens so far for each token."""
        model, ids = self.model, Texts.of(self.ids[:CAPTIONS], self.tokenizer.pad).ids
        codes = torch.zeros(CAPTIONS, 0, dtype=torch.int64)
        for _ in range(model.config.cells):
            text = model.read_text(ids, ids != self.tokenizer.pad)[1]
            states = model.write(model.image_tokens(codes, GENERATED), text)
            newest = LIKELIEST.take(model.code_head(states[:, -1]).float(), None)
            codes = torch.cat([codes, newest[:, None]], 1)
        return codes

    def step(self) -> None:
        """Losses and gradients of one step of each order."""
        ids = self.ids.view(PICTURES, OF_EACH, -1)
        for loss in (
            caption_losses(self.model, self.tokenizer, self.codes, ids, 0.0, True),
            painting_losses(self.model, self.tokenizer, self.codes, ids[:, 0], 0.0, True),
        ):
            (loss[0] + loss[1]).backward()  # type: ignore[operator]
        self.model.zero_grad()


def works() -> Works:
    """At Toybox's size."""
    torch.manual_seed(0)
    tokenizer = numbered_tokenizer(VOCABULARY)
    model = BiART(named_config("toybox", vocab_size=VOCABULARY, codebook_size=CODES, grid_size=GRID)).eval()
    ids = torch.full((PICTURES * OF_EACH, WORDS + 2), tokenizer.pad)
    ids[:] = torch.randint(6, VOCABULARY, ids.shape)
    ids[:, 0], ids[:, -1] = tokenizer.cls, tokenizer.sep
    return Works(model, tokenizer, ids, torch.randint(CODES, (PICTURES, GRID**2)))


def measure(rounds: int) -> dict[str, float]:
    """All figures of Toybox's size."""
    work = works()
    if not work.cached().equal(work.uncached()):
        raise SystemExit("the two sides paint other codes")
    sides = {name: lambda own=own: seconds(own) for name, own in (("cached", work.cached), ("uncached", work.uncached))}
    times = alternate(sides, rounds)
    work.step()
    with FlopCounterMode(display=False) as counter:
        work.step()
    flops = counter.get_total_flops()
    rates = alternate({"step": lambda: flops / seconds(work.step), "machine": product_rate}, rounds)
    figures = {
        "l_verse.paint": median_ratio(times["uncached"], times["cached"]),
        "l_verse.step": median_ratio(rates["step"], rates["machine"]),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    return figures


def predict() -> None:
    """What the paper's size takes."""
    flops = count_base()
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in BiART(named_config("base", **BASE)).parameters())
    steps = 2 * TRAINING_CAPTIONS * EPOCHS
    hours = steps * flops / (H100_FLOPS * EFFICIENCY) / 3600
    print(f"parameters: {parameters / 1e6:.0f} M, {parameters * TRAINING_BYTES / 2**30:.1f} GiB while they learn")
    print(f"a text and a picture, one order, with gradients: {flops / 1e12:.2f} TFLOP")
    print(f"{EPOCHS} epochs of {TRAINING_CAPTIONS:,} captions in both orders: {hours:.0f} hours of an H100 at {EFFICIENCY:.0%} of its peak")


def count_base() -> int:
    """FLOPs of one text and one picture, mean of both orders, losses of the reference included."""
    with torch.device("meta"):
        model = BiART(named_config("base", **BASE))
    length = model.config.text_length
    ids = torch.full((1, length), 6, device="meta")
    codes = torch.zeros(1, model.config.cells, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        for order in ("caption", "paint"):
            if order == "caption":
                states, image = model.read_image(codes)
                written = model.write(model.text_tokens(ids[:, :-1], GENERATED), image)
                loss = model.word_head(written).sum() + model.code_head(states[:, :-1]).sum()
            else:
                states, text = model.read(model.text_tokens(ids, GENERATED))
                written = model.write(model.image_tokens(codes[:, :-1], GENERATED), text)
                loss = model.code_head(written).sum() + model.word_head(states[:, :-1]).sum()
            loss.backward()
    return counter.get_total_flops() // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=("toybox", "base"), default="toybox")
    arguments = parser.parse_args()
    if arguments.size == "base":
        predict()
        return
    keep_freed_memory()  # as the stages do
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments.rounds)
    record("l_verse", {name: round(value, 4) for name, value in figures.items()})


if __name__ == "__main__":
    main()
