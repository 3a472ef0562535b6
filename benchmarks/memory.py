"""Memory of a GPU that each training takes, from shapes alone, and the batches that fit.

`python -m benchmarks.memory` runs a step of each training of the paper's size (the profile coco, networks `base`) in bfloat16 on
tensors without numbers (:mod:`diptych.model.training.memory`) and prints a table: what is there whatever the batch is, what each
picture adds, and the largest batch that GPUs of 24, 40, 80 and 140 GB hold, 8% of them left to CUDA and its allocator. Figures are in
`benchmarks/results/memory.json`. It takes about two minutes on one core; no GPU is needed, and none has confirmed it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from benchmarks.figures import record
from diptych.eval.scorers.clip import ClipConfig, build_clip
from diptych.model.networks import aug_vae, biart, butd, image_generator
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import named_config
from diptych.model.networks.discriminator import Discriminator, DiscriminatorConfig
from diptych.model.objectives.perceptual import LPIPS, ResNetEncoder
from diptych.model.objectives.scst import UnifiedPolicy
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import SPECIAL_TOKENS, CaptionTokenizer
from diptych.model.training.autoencoder import AutoencoderSteps, AutoencoderTrainingConfig
from diptych.model.training.biart import BiARTSteps
from diptych.model.training.biart_config import BiARTTrainingConfig
from diptych.model.training.butd import BUTDSteps
from diptych.model.training.butd_config import BUTDTrainingConfig
from diptych.model.training.contracts import Piece
from diptych.model.training.game import GameConfig
from diptych.model.training.image_generator import ImageGeneratorSteps, ImageGeneratorTrainingConfig
from diptych.model.training.memory import Shapes, StepMemory, step_memory
from diptych.model.training.pretraining import PretrainingConfig, PretrainingSteps, masked_in
from diptych.model.training.sequence import SequenceSteps, SequenceTrainingConfig
from diptych.model.training.token import TokenSteps, TokenTrainingConfig

GIB = 2**30
GPUS = (24, 40, 80, 140)
LEFT = 0.08
# Two sizes of a batch, between and beyond which memory is taken to grow evenly.
BATCHES = (32, 64)
WORDS = " ".join(f"w{index}" for index in range(12)) + "."  # a caption of COCO's has 10.5 words
SHARED: dict[str, Any] = {
    "steps": 100, "learning_rate": 1e-4, "clip_norm": 1.0, "ema_decay": 0.0, "precision": "bfloat16", "seed": 0,
    "checkpoint_seconds": 600.0,
}  # fmt: skip


class Pictures:
    """As many pictures as a batch has, with one caption each."""

    def __init__(self, count: int, cells: int, codes: int, width: int) -> None:
        self.keys = [str(index) for index in range(count)]
        self.cells, self.code_count, self.width = cells, codes, width

    def __len__(self) -> int:
        return len(self.keys)

    def grid(self, indices: Sequence[int]) -> Any:
        return np.zeros((len(indices), self.cells, self.width), np.float16)

    def codes(self, indices: Sequence[int]) -> Any:
        return np.random.default_rng(0).integers(0, self.code_count, (len(indices), self.cells))

    def images(self, indices: Sequence[int], size: int) -> Tensor:
        return torch.zeros(len(indices), 3, size, size, dtype=torch.uint8)

    def captions(self, index: int) -> list[str]:
        return [WORDS]

    def meta(self, index: int) -> dict[str, Any]:
        return {"width": 1, "height": 1, "objects": []}


@dataclass(frozen=True)
class Training:
    """A training's step with so many pictures in its batch, and the batch of the profile."""

    name: str
    batch: int
    measure: Callable[[int], StepMemory]


def numbered_tokenizer(size: int) -> CaptionTokenizer:
    """A vocabulary of ``size`` made-up words, those of WORDS among them."""
    tokens = [*SPECIAL_TOKENS, ".", *(f"w{index}" for index in range(size - len(SPECIAL_TOKENS) - 1))]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return CaptionTokenizer(backend)


def without_numbers(shapes: Shapes, features: Sequence[Tensor]) -> list[Tensor]:
    """Features that count, in the place of those that were read; codes, by which weights are looked up, stay as they are."""
    return [shapes.tensor(*part.shape, dtype=part.dtype) if part.is_floating_point() else part for part in features]


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without weights."""
    with torch.device("meta"):
        return build()


class Unified:
    """The transformer of the profile, of UMT's size."""

    def __init__(self, attention: str = "masked", **heads: Any) -> None:
        self.shapes = Shapes()
        config = replace(named_config("base"), caption_attention=attention, **heads)  # type: ignore[arg-type]
        self.config = config
        self.tokenizer = numbered_tokenizer(config.vocab_size)
        self.model: Any = self.shapes.network(on_meta(lambda: build_transformer(config)))
        self.codebook = self.shapes.tensor(config.codebook_size, config.feature_dim)

    def pictures(self, batch: int) -> Pictures:
        return Pictures(batch, self.config.cells, self.config.codebook_size, self.config.feature_dim)

    def token(self, batch: int, caption_share: float) -> StepMemory:
        config = TokenTrainingConfig(
            **SHARED, caption_share=caption_share, caption_batch_size=batch, captions_per_image=1, paint_batch_size=batch,
            caption_length=19, warmup_share=0.05, label_smoothing=0.2, least_masked=0.0, text_drop=0.0, all_masked=1.0,
        )  # fmt: skip
        train = self.pictures(batch)
        steps = TokenSteps(config, self.model.train(), self.tokenizer, self.codebook, train)
        pieces = steps.pieces(0, without_numbers(self.shapes, steps.read(0)))
        return step_memory(self.shapes, config, self.model, pieces, codebook=self.codebook)

    def pretraining(self, batch: int) -> StepMemory:
        seed = next(seed for seed in range(99) if masked_in(0, seed, 1 / 3) == "cells")
        config = PretrainingConfig(
            **{**SHARED, "seed": seed}, batch_size=batch, text_length=20, warmup_share=0.05, all_masked=1.0
        )
        train = self.pictures(batch)
        steps = PretrainingSteps(config, self.model.train(), self.tokenizer, self.codebook, train, None)
        pieces = steps.pieces(0, steps.read(0))
        return step_memory(self.shapes, config, self.model, pieces, codebook=self.codebook)

    def scst(self, batch: int) -> StepMemory:
        """The pass that improves the sampled captions; that which samples them keeps nothing for gradients."""
        config = self._sequence(batch)
        ids = torch.full((batch, 19), 10)
        ids[:, 0], ids[:, -1] = self.tokenizer.cls, self.tokenizer.sep
        seen, paid = self.shapes.tensor(batch, 64, 2048), self.shapes.tensor(batch)
        policy = UnifiedPolicy(self.model, self.tokenizer)

        def loss() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            with autocast_context("cpu", "bfloat16"):
                images = policy.read(seen)
            for compute in policy.losses(images, ids, paid, 1.0):
                with autocast_context("cpu", "bfloat16"):
                    part = compute()
                yield part, {}

        self.model.eval()  # as SCST does (diptych.model.training.scst)
        return step_memory(self.shapes, config, self.model, [Piece(1.0, batch, loss)], codebook=self.codebook)

    def clip(self, batch: int) -> StepMemory:
        config = self._sequence(batch)
        generator = self.shapes.network(on_meta(lambda: image_generator.ImageGenerator(generator_config())))
        scorer: Any = self.shapes.network(vit_b_32(self.shapes))
        for frozen in (generator, scorer):
            frozen.eval().requires_grad_(False)
        steps = SequenceSteps(
            config, self.model.train(), self.tokenizer, self.codebook, self.pictures(batch), None, generator, scorer  # type: ignore[arg-type]
        )  # fmt: skip
        pieces = steps.pieces(1, [[]])
        return step_memory(self.shapes, config, self.model, pieces, frozen=(generator, scorer), codebook=self.codebook)

    def _sequence(self, batch: int) -> SequenceTrainingConfig:
        return SequenceTrainingConfig(
            **SHARED, scst_steps=1, clip_steps=1, paint_steps=1, scst_batch_size=batch, clip_batch_size=batch,
            paint_batch_size=batch, caption_length=19, label_smoothing=0.2, least_masked=0.0, text_drop=0.0,
            sample_temperature=1.0, mask_predict_steps=4, guidance=1.0, gumbel_temperature=1.0,
        )  # fmt: skip


def vit_b_32(shapes: Shapes) -> nn.Module:
    """A CLIP of the size of ViT-B/32, the scorer of the profile, that knows one caption's words."""
    small = ClipConfig(512, 224, 1, 64, 1, 32, 64, 1, 1, 77, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    words = build_clip(small, [[WORDS]], seed=0)
    large = replace(small, vision_layers=12, vision_width=768, vision_heads=12, text_width=512, text_layers=12, text_heads=8)
    clip = build_clip(large, [[WORDS]], seed=0)
    clip.tokenize = words.tokenize
    return clip.to("meta")


def generator_config() -> image_generator.ImageGeneratorConfig:
    return image_generator.named_config("base", feature_dim=2048)


def judge(kind: type[ResNetEncoder | LPIPS]) -> nn.Module:
    """A frozen network that judges pictures, without the weights of its file."""
    with patch("diptych.model.objectives.perceptual.read_into"):
        return kind(Path("anywhere"))


def generator_step(batch: int) -> StepMemory:
    shapes, network = Shapes(), generator_config()
    discriminator_config = DiscriminatorConfig(channels=64, first_channels=64)
    config = ImageGeneratorTrainingConfig(
        **{**SHARED, "ema_decay": 0.999}, batch_size=batch, warmup_share=0.0, reconstruction="huber",
        reconstruction_weight=0.0, perceptual_weight=10.0, object_weight=0.0,
        game=GameConfig(
            warm_start_steps=0, discriminator=discriminator_config, learning_rate=1e-4, adversarial_weight=1.0, code_weight=1.0,
            feature_weight=10.0,
        ),
    )  # fmt: skip
    generator: Any = shapes.network(on_meta(lambda: image_generator.ImageGenerator(network)).train())
    encoder: Any = shapes.network(on_meta(lambda: judge(ResNetEncoder))).requires_grad_(False)
    codebook = torch.empty(10000, 2048, device="meta")
    discriminator: Any = shapes.network(
        on_meta(lambda: Discriminator(discriminator_config, network.image_size, codebook)).train()
    )
    train = Pictures(batch, 64, 10000, 2048)
    steps = ImageGeneratorSteps(config, generator, shapes.like(codebook), train, encoder, discriminator)
    pieces = steps.pieces(0, steps.read(0))
    return step_memory(shapes, config, generator, pieces, discriminator, [encoder], steps.codebook)


def biart_step(batch: int, caption_share: float) -> StepMemory:
    shapes = Shapes()
    network = biart.named_config("base", vocab_size=49808, codebook_size=8192, grid_size=32)
    model: Any = shapes.network(on_meta(lambda: biart.BiART(network)).train())
    config = BiARTTrainingConfig(
        **SHARED, caption_share=caption_share, caption_batch_size=batch, captions_per_image=1, paint_batch_size=batch,
        caption_length=64, warmup_share=0.05,
    )  # fmt: skip
    tokenizer, train = numbered_tokenizer(49808), Pictures(batch, 1024, 8192, 2)
    steps = BiARTSteps(config, model, tokenizer, train, torch.zeros(2, 2), torch.device("cpu"))
    return step_memory(shapes, config, model, steps.pieces(0, steps.read(0)))


def autoencoder_step(batch: int) -> StepMemory:
    shapes = Shapes()
    network = aug_vae.named_config("base")
    model: Any = shapes.network(on_meta(lambda: aug_vae.AugVAE(network)).train())
    config = AutoencoderTrainingConfig(
        **SHARED, batch_size=batch, warmup_share=0.0, perceptual_weight=0.1, commitment_weight=0.25
    )
    lpips: Any = shapes.network(on_meta(lambda: judge(LPIPS))).requires_grad_(False)
    quantizer = model.quantizer
    quantizer._seen_counts, quantizer._seen_sums = shapes.like(quantizer.counts.to("meta")), shapes.like(
        quantizer.sums.to("meta")
    )
    train = Pictures(batch, 1, 1, 1)
    steps = AutoencoderSteps(config, model, train, lpips, torch.device("cpu"))
    return step_memory(shapes, config, model, steps.pieces(0, steps.read(0)), frozen=[lpips])


def butd_step(batch: int) -> StepMemory:
    shapes = Shapes()
    network = butd.named_config("base", feature_dim=2048, vocab_size=10000)
    model: Any = shapes.network(on_meta(lambda: butd.BUTD(network)).train())
    config = BUTDTrainingConfig(
        **SHARED, objective="words", batch_size=batch, captions_per_image=5, caption_length=19, warmup_share=0.0
    )
    train = Pictures(batch, 64, 1, 2048)
    steps = BUTDSteps(config, model, numbered_tokenizer(10000), train, None, torch.device("cpu"))
    return step_memory(shapes, config, model, steps.pieces(0, without_numbers(shapes, steps.read(0))))


def trainings() -> list[Training]:
    """Those of the profile coco."""
    unified = Unified()
    prefix = Unified("prefix")
    pretrained = Unified(answers=9500, matching=True)
    return [
        Training("token level, caption", 256, lambda batch: unified.token(batch, 1.0)),
        Training("token level, paint", 256, lambda batch: unified.token(batch, 0.0)),
        Training("token level, caption, prefix", 256, lambda batch: prefix.token(batch, 1.0)),
        Training("sequence level, SCST", 160, unified.scst),
        Training("sequence level, CLIP loss", 160, unified.clip),
        Training("pretraining (X-LXMERT)", 920, pretrained.pretraining),
        Training("image generator with the game", 96, generator_step),
        Training("BUTD, words", 20, butd_step),
        Training("AugVAE", 64, autoencoder_step),
        Training("BiART, caption", 64, lambda batch: biart_step(batch, 1.0)),
        Training("BiART, paint", 64, lambda batch: biart_step(batch, 0.0)),
    ]  # fmt: skip


def slope(training: Training) -> tuple[StepMemory, int, int]:
    """The memory of the larger of two batches, and of any: bytes whatever it is, and bytes for each picture."""
    sizes = BATCHES
    first, second = (training.measure(batch) for batch in sizes)
    each = (second.total - first.total) // (sizes[1] - sizes[0])
    return second, second.total - each * sizes[1], each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="trainings whose names begin so")
    only = parser.parse_args().only
    figures: dict[str, float] = {}
    columns = ["training", "weights, GiB", "optimizer, GiB", "any batch, GiB", "each picture, MiB", "the profile's batch"]
    print(f"| {' | '.join([*columns, *(f'{size} GB' for size in GPUS)])} |")
    print("| --- " * (6 + len(GPUS)) + "|")
    for training in trainings():
        if not training.name.startswith(only):
            continue
        memory, fixed, each = slope(training)
        fits = [max(0, int((size * 1e9 * (1 - LEFT) - fixed) // each)) for size in GPUS]
        whole = fixed + each * training.batch
        shown = [f"{memory.weights / GIB:.2f}", f"{memory.optimizer / GIB:.2f}", f"{fixed / GIB:.1f}", f"{each / 2**20:.0f}",
                 f"{training.batch}: {whole / GIB:.0f} GiB", *map(str, fits)]  # fmt: skip
        print(f"| {training.name} | " + " | ".join(shown) + " |", flush=True)
        name = training.name.replace(",", "").replace(" ", "_")
        figures |= {f"memory.{name}.fixed_gib": fixed / GIB, f"memory.{name}.picture_mib": each / 2**20}
    if not only:
        record("memory", figures)


if __name__ == "__main__":
    main()
