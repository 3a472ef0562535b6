"""The transformer against the reference code's way to use it, at the papers' size with the same random weights.

`python -m benchmarks.model [--only caption.masked.b4 ...] [--rounds 5] [--threads 1]`. Both sides take turns; a figure
is the median of the rounds, written to `benchmarks/results/model.json`; those not measured stay there as they are.

| figure | ours / reference |
| --- | --- |
| caption.masked.b4 | greedy captions of 16 words, the papers' attention, 4 pictures (the same words) |
| caption.prefix.b4, .b16 | greedy captions of 16 words, prefix attention with a key/value cache, 4 and 16 pictures |
| paint.b4 | mask-predict-4 by the reference's rule, 4 captions (the same codes) |
| train.caption.b8, train.paint.b8 | token-level step with optimizer, 8 pictures, no dropout (the same gradients) |
| train.words_per_second | supervised words per second, prefix attention, 8 pictures with 5 captions each |
| bf16.caption, .prefix, .paint, .train | both ways to caption and painting, batches of 4, and the caption step: bfloat16 / our float32 (null where the processor multiplies no bfloat16) |
| train.of_peak | FLOPs of our two steps / seconds / rate of a large matrix product, the smaller of the two |

The reference side is `benchmarks.reference_model`; its optimizer is torch's AdamW as a loop over the tensors, on all
of them, as the one that generate-it takes from transformers.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.floors import Floor, floor_of, product_rate, read_rate
from benchmarks.reference_model import ReferenceModel
from diptych.model.decoding.caption import MaskedNextWord, PrefixNextWord, encode_images, write_captions
from diptych.model.decoding.decisions import REFERENCE
from diptych.model.decoding.paint import paint_codes
from diptych.model.importers.checkpoint import build
from diptych.model.importers.names import common_names
from diptych.model.importers.x_lxmert import GENERATE_IT_NAMES, UNTRAINED
from diptych.model.inference.transformer import inference_transformer
from diptych.model.networks.config import TransformerConfig, named_config
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.token import (
    caption_loss,
    masked_caption_loss,
    paint_loss,
    sample_mask,
    sample_positions,
)
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import SPECIAL_TOKENS, CaptionTokenizer
from diptych.model.training.optimisation import clip_at_step
from pipelines.runner.threads import keep_freed_memory

WORDS = 16  # a caption of the reference: [CLS], 16 words, [SEP]
LENGTH = WORDS + 2
SMOOTHING = 0.2
CAPTIONS_PER_IMAGE = 5
FIGURES = (
    "caption.masked.b4",
    "caption.prefix.b4",
    "caption.prefix.b16",
    "paint.b4",
    "train.caption.b8",
    "train.paint.b8",
    "train.words_per_second",
    "bf16.caption",
    "bf16.prefix",
    "bf16.paint",
    "bf16.train",
    "train.of_peak",
)
AIMS = dict(zip(FIGURES, (2.8, 10, 18, 2.0, 1.8, 1.6, 50, 2, 1, 2, 2, 0.6), strict=True))


def numbered_tokenizer(size: int) -> CaptionTokenizer:
    """A vocabulary of ``size`` made-up words; only its size matters here."""
    tokens = [*SPECIAL_TOKENS, ".", *(f"w{index}" for index in range(size - len(SPECIAL_TOKENS) - 1))]
    backend = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    return CaptionTokenizer(backend)


class Sides:
    """Both networks, the inputs of all works, and the works themselves."""

    def __init__(self, config: TransformerConfig, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.tokenizer = numbered_tokenizer(config.vocab_size)
        self.codebook = torch.randn(config.codebook_size, config.feature_dim)
        self.reference = ReferenceModel(config, self.codebook).eval()
        tensors = {name: tensor.clone() for name, tensor in self.reference.state_dict().items()}
        imported = build(Path("reference"), common_names(tensors, GENERATE_IT_NAMES), config, None, unused=UNTRAINED)
        self.ours = imported.model
        self.fast = inference_transformer(self.ours)
        trained = [parameter for parameter in self.reference.parameters() if parameter.requires_grad]
        # A learning rate of 0 costs the same and keeps both sides and all rounds at the same weights.
        self.optimizers = {
            "reference": torch.optim.AdamW(
                trained, lr=0.0, eps=1e-6, weight_decay=0.01, foreach=False, fused=False
            ),
            "ours": torch.optim.AdamW(self.ours.parameters(), lr=0.0, weight_decay=0.01, fused=True),
        }

    def images(self, n: int) -> Tensor:
        """Grid features ``[n, cells, D]``."""
        return torch.randn(n, self.config.cells, self.config.feature_dim)

    def texts(self, n: int) -> Tensor:
        """Captions int64 ``[n, 18]`` with as many words as COCO's have: 10.5, standard deviation 2.4."""
        ids = torch.full((n, LENGTH), self.tokenizer.pad)
        for row in ids:
            words = int((10.5 + 2.4 * torch.randn(())).round().clamp(6, WORDS - 1))
            row[: words + 3] = torch.randint(len(SPECIAL_TOKENS) + 1, self.config.vocab_size, (words + 3,))
            row[0], row[words + 1], row[words + 2] = (
                self.tokenizer.cls,
                self.tokenizer.stop,
                self.tokenizer.sep,
            )
        return ids

    def floor(self, work: Callable[[], object]) -> Floor:
        """FLOPs and bytes of weights of the matrix products in ``work``."""
        return floor_of(self.fast, work)

    # Decoding

    def reference_captions(self, features: Tensor) -> Tensor:
        tokenizer = self.tokenizer
        return self.reference.write(
            features, WORDS, tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.stop
        )

    @torch.no_grad()
    def masked_captions(self, features: Tensor, model: UnifiedTransformer) -> Tensor:
        next_word = MaskedNextWord(model, model.encode_visual(features), self.tokenizer.mask)
        return write_captions(
            next_word, self.tokenizer, len(features), LENGTH, features.device, decisions=REFERENCE
        ).ids

    @torch.no_grad()
    def prefix_captions(self, features: Tensor, model: UnifiedTransformer) -> Tensor:
        next_word = PrefixNextWord(model, model.encode_visual_prefix(features), LENGTH)
        return write_captions(next_word, self.tokenizer, len(features), LENGTH, features.device).ids

    def paintings(self, ids: Tensor, model: UnifiedTransformer) -> Tensor:
        return paint_codes(model, self.tokenizer, self.codebook, ids, decisions=REFERENCE).codes

    # Training

    def step(self, side: str, loss: Callable[[], Tensor]) -> None:
        """One step as both trainers do it: loss, gradients, clipping, AdamW."""
        model = self.reference if side == "reference" else self.ours
        loss().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if side == "reference":
            nn.utils.clip_grad_norm_(trained, 1.0)
        else:
            clip_at_step(self.optimizers[side], trained, 1.0)
        self.optimizers[side].step()
        self.optimizers[side].zero_grad()

    def caption_losses(self, n: int) -> dict[str, Callable[[], Tensor]]:
        """One word of each of n captions, ``masked``, on both sides."""
        features, ids = self.images(n), self.texts(n)
        positions = sample_positions(self.tokenizer, ids)
        return {
            "reference": lambda: self.reference.caption_loss(
                features, ids, positions, self.tokenizer.mask, SMOOTHING
            ),
            "ours": lambda: masked_caption_loss(
                self.ours,
                self.tokenizer,
                encode_images(self.ours, features),
                ids[:, None],
                positions[:, None],
                SMOOTHING,
            ),
        }

    def paint_losses(self, n: int) -> dict[str, Callable[[], Tensor]]:
        """Masked cells of n paintings on both sides; one mask for all, as the reference draws it."""
        ids = self.texts(n)
        codes = torch.randint(self.config.codebook_size, (n, self.config.cells))
        masked = sample_mask(n, self.config.cells, decisions=REFERENCE)
        return {
            "reference": lambda: self.reference.paint_loss(codes, ids, masked, self.tokenizer.pad, SMOOTHING),
            "ours": lambda: paint_loss(
                self.ours, self.tokenizer, self.codebook, codes, ids, masked, SMOOTHING
            ),
        }


def turns(make: Callable[[], dict[str, Callable[[], object]]]) -> dict[str, Callable[[], float]]:
    """The sides of :func:`alternate`: each measures its work of a round; ``make`` draws the inputs of a round."""
    names = list(make())
    rounds = [make() for _ in range(4)]
    positions: dict[str, Iterator[dict[str, Callable[[], object]]]] = {
        name: itertools.cycle(rounds) for name in names
    }
    return {name: lambda name=name: seconds(next(positions[name])[name]) for name in names}


class Report:
    """Figures and the lines of the table."""

    def __init__(self) -> None:
        self.figures: dict[str, float | None] = {}
        self.lines: list[str] = []

    def add(self, figure: str, value: float | None, columns: str) -> None:
        self.figures[figure] = value
        shown = "none" if value is None else f"{value:.2f}"
        line = f"| {figure} | {shown} | {AIMS[figure]} | {columns} |"
        self.lines.append(line)
        print(line, flush=True)


def compare(
    sides: Sides,
    report: Report,
    figure: str,
    make: Callable[[], dict[str, Callable[[], object]]],
    rounds: int,
    agreement: str,
) -> dict[str, list[float]]:
    """Measure reference / ours and report it with both sides' FLOPs, and what ours would take for its FLOPs and for reading its
    weights at the machine's rates."""
    both = turns(make)
    for side in both.values():  # each, so that a round's draw stays that of both, and nobody's first touch of memory counts
        side()
    times = alternate(both, rounds)
    work = make()
    floors = {side: sides.floor(work[side]) for side in ("reference", "ours")}
    flops = {side: floor.flops for side, floor in floors.items()}
    # of decoding alone: see Floor
    memory = "" if figure.startswith("train") else f"{floors['ours'].weight_bytes / read_rate():.2f} s"
    report.add(
        figure,
        median_ratio(times["reference"], times["ours"]),
        f"{statistics.median(times['reference']):.2f} s | {statistics.median(times['ours']):.2f} s | "
        f"{flops['ours'] / product_rate():.2f} s | {memory} | "
        f"{flops['reference'] / 1e9:.0f} | {flops['ours'] / 1e9:.0f} | {flops['reference'] / flops['ours']:.2f} | "
        f"{agreement}",
    )
    return times


def captions(sides: Sides, report: Report, figure: str, n: int, rounds: int) -> None:
    masked = figure.startswith("caption.masked")

    def make() -> dict[str, Callable[[], Tensor]]:
        features = sides.images(n)
        ours = (lambda: sides.masked_captions(features, sides.fast)) if masked else (
            lambda: sides.prefix_captions(features, sides.fast)
        )  # fmt: skip
        return {"reference": lambda: sides.reference_captions(features), "ours": ours}

    agreement = "another function"
    if masked:
        work = make()
        agreement = f"same words {same_share(work['reference'](), work['ours'](), sides.tokenizer.stop):.3f}"
    compare(sides, report, figure, make, rounds, agreement)


def same_share(reference: Tensor, ours: Tensor, stop: int) -> float:
    """Share of equal words up to the reference's full stop."""
    words = slice(1, WORDS + 1)
    before = ((reference[:, words] == stop).cumsum(1) - (reference[:, words] == stop).int()) == 0
    return float((reference[:, words] == ours[:, words])[before].float().mean())


def paintings(sides: Sides, report: Report, rounds: int) -> None:
    def make() -> dict[str, Callable[[], Tensor]]:
        ids = sides.texts(4)
        return {
            "reference": lambda: sides.reference.paint(ids, sides.tokenizer.pad, 4)[0],
            "ours": lambda: sides.paintings(ids, sides.fast),
        }

    work = make()
    same = (work["reference"]() == work["ours"]()).float().mean()
    compare(sides, report, "paint.b4", make, rounds, f"same codes {float(same):.3f}")


def gradient_difference(sides: Sides, losses: dict[str, Callable[[], Tensor]]) -> float:
    """Largest difference of a gradient, over the largest gradient. LXMERT's first word, position and token type never
    train, ours do; they are left out."""
    losses["reference"]().backward()
    losses["ours"]().backward()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in sides.reference.named_parameters()
    }
    gradients["cluster_codebook.weight"] = sides.codebook
    mapped = build(Path("gradients"), common_names(gradients, GENERATE_IT_NAMES), sides.config, None, unused=UNTRAINED).model
    theirs, worst, largest = dict(mapped.named_parameters()), 0.0, 0.0
    for name, parameter in sides.ours.named_parameters():
        ours = torch.zeros_like(parameter.detach()) if parameter.grad is None else parameter.grad
        first = 1 if name.startswith("text_embedding.") and parameter.ndim == 2 else 0
        difference = (
            (ours[first:] - theirs[name].detach()[first:]).abs().max()
            if len(ours) > first
            else ours.new_zeros(())
        )
        worst, largest = max(worst, float(difference)), max(largest, float(theirs[name].detach().abs().max()))
    for model in (sides.reference, sides.ours):
        model.zero_grad()
    return worst / largest


def steps(sides: Sides, report: Report, figure: str, rounds: int) -> dict[str, float]:
    """Measure one kind of training step; returns our FLOP/s and the machine's in the same run."""
    losses = sides.caption_losses if figure == "train.caption.b8" else sides.paint_losses

    def make() -> dict[str, Callable[[], None]]:
        both = losses(8)
        return {side: lambda side=side: sides.step(side, both[side]) for side in both}

    difference = gradient_difference(sides, losses(8))
    rates = [product_rate()]
    times = compare(
        sides, report, figure, make, rounds, f"gradients differ by {difference:.0e} of the largest"
    )
    rates.append(product_rate())
    ours = statistics.mean(sides.floor(make()["ours"]).flops for _ in range(8))
    return {"ours": ours / statistics.median(times["ours"]), "machine": max(rates)}


def words_per_second(sides: Sides, report: Report, rounds: int) -> None:
    n = 8

    def make() -> dict[str, Callable[[], float]]:
        reference = sides.caption_losses(n)["reference"]
        features, ids = sides.images(n), sides.texts(n * CAPTIONS_PER_IMAGE).view(n, CAPTIONS_PER_IMAGE, -1)
        supervised = int((ids[..., 1:] != sides.tokenizer.pad).sum())

        def ours() -> Tensor:
            return caption_loss(
                sides.ours, sides.tokenizer, sides.ours.encode_visual_prefix(features), ids, SMOOTHING
            )

        return {
            "reference": lambda: n / seconds(lambda: sides.step("reference", reference)),
            "ours": lambda: supervised / seconds(lambda: sides.step("ours", ours)),
        }

    def side(name: str) -> Callable[[], float]:
        return lambda: make()[name]()

    side("ours")()
    rates = alternate({name: side(name) for name in ("ours", "reference")}, rounds)
    report.add(
        "train.words_per_second",
        median_ratio(rates["ours"], rates["reference"]),
        f"{statistics.median(rates['reference']):.1f} words/s | {statistics.median(rates['ours']):.1f} words/s | | | | | | "
        "another function",
    )


def bfloat16(sides: Sides, report: Report, figure: str, rounds: int) -> None:
    """Ours in bfloat16 against ours in float32."""
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        report.add(
            figure, None, "| | | | | | | this processor multiplies no bfloat16 (neither AMX nor AVX512-BF16)"
        )
        return
    features, ids, losses = sides.images(4), sides.texts(4), sides.caption_losses(8)["ours"]
    works: dict[str, Callable[[UnifiedTransformer], object]] = {
        "bf16.caption": lambda model: sides.masked_captions(features, model),
        "bf16.prefix": lambda model: sides.prefix_captions(features, model),
        "bf16.paint": lambda model: sides.paintings(ids, model),
        "bf16.train": lambda model: sides.step("ours", losses),
    }

    rounded_once = inference_transformer(sides.ours, torch.bfloat16)

    def brain() -> object:
        with autocast_context("cpu", "bfloat16"):
            return works[figure](rounded_once)

    times = alternate(
        {"float32": lambda: seconds(lambda: works[figure](sides.fast)), "bfloat16": lambda: seconds(brain)},
        rounds,
    )
    with torch.no_grad():
        visible = ids != sides.tokenizer.pad
        exact = sides.ours.word_logits(sides.ours(ids, visible, features)[0])
        with autocast_context("cpu", "bfloat16"):
            rounded = sides.ours.word_logits(sides.ours(ids, visible, features)[0]).float()
    report.add(
        figure,
        median_ratio(times["float32"], times["bfloat16"]),
        f"{statistics.median(times['float32']):.2f} s | {statistics.median(times['bfloat16']):.2f} s | | | | | | "
        f"word logits: standard deviation {exact.std():.3f}, of the error {(rounded - exact).std():.4f}",
    )


def measure(size: str, figures: list[str], rounds: int, threads: int, seed: int) -> Report:
    """Run the chosen figures."""
    torch.set_num_threads(threads)
    config = named_config("base") if size == "base" else small(named_config("base"))
    sides, report = Sides(replace(config, dropout=0.0), seed), Report()
    print(
        f"{size}, {threads} threads, {product_rate() / 1e9:.0f} GFLOP/s, "
        f"{read_rate() / 1e9:.0f} GB/s, {rounds} rounds"
    )
    print(
        "| figure | median | aim | reference | ours | FLOP floor of ours | memory floor of ours | GFLOP reference | GFLOP ours | ratio of these | |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    shares = []
    for figure in (figure for figure in FIGURES if figure in figures):
        if figure.startswith("caption"):
            captions(sides, report, figure, int(figure.rpartition("b")[2]), rounds)
        elif figure == "paint.b4":
            paintings(sides, report, rounds)
        elif figure in ("train.caption.b8", "train.paint.b8"):
            rate = steps(sides, report, figure, rounds)
            shares.append((rate["ours"] / rate["machine"], rate))
        elif figure == "train.words_per_second":
            words_per_second(sides, report, rounds)
        elif figure.startswith("bf16"):
            bfloat16(sides, report, figure, rounds)
        elif shares:
            share, rate = min(shares, key=lambda pair: pair[0])
            report.add(
                figure,
                share,
                f"| {rate['ours'] / 1e9:.0f} of {rate['machine'] / 1e9:.0f} GFLOP/s | | | | | | optimizer included",
            )
    return report


def small(config: TransformerConfig) -> TransformerConfig:
    """A network to try the benchmark with."""
    return replace(
        config, hidden_size=48, attention_heads=4, intermediate_size=96, language_layers=2, visual_layers=1,
        cross_layers=2, vocab_size=300, codebook_size=100, feature_dim=32,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="FIGURE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=("base", "small"), default="base")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the stages do; for both sides
    start = time.perf_counter()
    report = measure(arguments.size, arguments.only, arguments.rounds, arguments.threads, arguments.seed)
    print(f"{(time.perf_counter() - start) / 60:.0f} minutes")
    if arguments.size == "base":
        record("model", report.figures)


if __name__ == "__main__":
    main()
