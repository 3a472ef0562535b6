"""The family ``unified``: codes of grid features, captions word by word, paintings by mask-predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from diptych.features.assignment import nearest_codes
from diptych.features.errors import UserError as FeaturesError
from diptych.features.precision import autocast_context as detector_context
from diptych.model.answer_table import AnswerTable, load_answer_table
from diptych.model.decoding.answer import answer_logits, question_states
from diptych.model.decoding.caption import Captions, encode_images
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import FixedCells, Paintings
from diptych.model.devices import Texts
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input
from diptych.model.inference.image_generator import InferenceImageGenerator
from diptych.model.inference.transformer import inference_transformer
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.packaged.attention import WordAttention, question_attention, word_attention
from diptych.model.packaged.directory import DETECTOR, IMAGE_GENERATOR, PackageConfig
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.parts import Parts
from diptych.model.precision import resolve_precision
from diptych.model.pretrained import load_transformer
from diptych.model.tokenizer import CaptionTokenizer

if TYPE_CHECKING:
    from diptych.features.detector.grid_detector import PyramidGridDetector


def load_unified(folder: Path, config: PackageConfig, machine: Machine) -> Parts:
    """Load a package of this family.

    Raises:
        UserError: a file is missing, unreadable or does not fit the others.
    """
    from diptych.features.detector.load import load_detector

    model, tokenizer, codebook = load_transformer(folder, machine.device)
    generator = load_image_generator(folder / IMAGE_GENERATOR, machine.device)
    try:
        detector = load_detector(folder / DETECTOR, machine.device)
    except FeaturesError as error:
        raise UserError(str(error)) from None
    transformer = inference_transformer(model, resolve_precision(machine.device, machine.precision))
    return unified_parts(
        config, machine, transformer, tokenizer, codebook.float(), InferenceImageGenerator(generator), detector,
        load_answer_table(folder, model.config.answers),
    )  # fmt: skip


def unified_parts(
    config: PackageConfig,
    machine: Machine,
    transformer: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    generator: InferenceImageGenerator,
    detector: PyramidGridDetector,
    table: AnswerTable | None = None,
) -> Parts:
    """The parts of loaded networks; codebook: float32 ``[K, D]`` on the device."""
    images = GridTokenizer(detector, codebook, generator, transformer.config.grid_size, machine)
    captions = UnifiedCaptionDecoder(transformer, tokenizer, images)
    paintings = UnifiedPaintDecoder(transformer, tokenizer, codebook, config.captioning.length)
    return Parts(tokenizer, images, captions, paintings, UnifiedAnswerDecoder(captions), table)


class GridTokenizer:
    """Detector, codebook and image generator (:class:`diptych.model.packaged.seeing.ImageTokenizer`)."""

    def __init__(
        self,
        detector: PyramidGridDetector,
        codebook: Tensor,
        generator: InferenceImageGenerator,
        grid_size: int,
        machine: Machine,
    ) -> None:
        """``codebook``: float32 ``[K, D]`` on the device; ``grid_size``: cells along a side, 8."""
        self.detector, self.codebook, self.generator = detector, codebook, generator
        self.grid_size, self.cells, self.machine = grid_size, grid_size**2, machine
        self.image_size = generator.config.image_size

    @property
    def codebook_size(self) -> int:
        """Number of codes, K."""
        return len(self.codebook)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Grid features float32 ``[n, 64, D]`` on the device, rounded to float16 as the feature store has
        them; images of one input size go through the detector together."""
        device = self.machine.device
        prepared = [self.detector.prepare(image) for image in images]
        groups: dict[torch.Size, list[int]] = {}
        for number, pixels in enumerate(prepared):
            groups.setdefault(pixels.shape, []).append(number)
        features = torch.empty(len(images), self.cells, self.codebook.shape[1], device=device)
        with torch.autocast(device.type, enabled=False), detector_context(device, self.machine.precision):
            for numbers in groups.values():
                batch = torch.stack([prepared[number] for number in numbers]).to(device)
                features[numbers] = self.detector.grid_features(batch).half().float()
        return features

    def codes(self, images: Sequence[Image.Image]) -> Tensor:
        """The nearest centroid of each cell, int64 ``[n, 64]``."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):  # near centroids are told apart in float32
            return nearest_codes(features, self.codebook)

    def pixels(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[n, 64]`` to pixels float32 ``[n, 3, S, S]`` in -1..1; -1 is shown as the mean of the
        codebook."""
        codes = codes.to(self.machine.device)
        grid = self.codebook[codes.clamp(min=0)]
        unpainted = codes < 0
        if unpainted.any():
            grid[unpainted] = self.codebook.mean(0)
        return self.generator(grid).float()


class UnifiedCaptionDecoder:
    """Captions by the transformer (:class:`diptych.model.packaged.captioning.CaptionDecoder`)."""

    def __init__(
        self, transformer: UnifiedTransformer, tokenizer: CaptionTokenizer, images: GridTokenizer
    ) -> None:
        self.transformer, self.tokenizer, self.images = transformer, tokenizer, images

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Float32 ``[n, 64, D]`` (:func:`diptych.model.image_features.caption_input`)."""
        return caption_input(self.transformer.config, self.images.codebook, self.images.features(images))

    def write(self, seen: Tensor, options: CaptionOptions, seeds: Sequence[int]) -> Captions:
        """Captions of n images (:func:`diptych.model.decoding.decode.caption_images`)."""
        return caption_images(self.transformer, self.tokenizer, seen, options, seeds)

    def attention(self, seen: Tensor, ids: Tensor) -> list[WordAttention]:
        """Where words look (:func:`diptych.model.packaged.attention.word_attention`)."""
        encoded = encode_images(self.transformer, seen)
        each = len(ids) // len(seen)
        encoded = [states.repeat_interleave(each, 0) for states in encoded]
        return word_attention(self.transformer, self.tokenizer, encoded, ids)


class UnifiedPaintDecoder:
    """Paintings by the transformer (:class:`diptych.model.packaged.painting.PaintDecoder`)."""

    def __init__(
        self, transformer: UnifiedTransformer, tokenizer: CaptionTokenizer, codebook: Tensor, length: int
    ) -> None:
        """``codebook``: float32 ``[K, D]`` on the device; ``length``: of encoded captions, [CLS] and [SEP]
        included."""
        self.transformer, self.tokenizer = transformer, tokenizer
        self.codebook, self.length = codebook, length

    def paint(
        self,
        captions: list[str],
        options: PaintOptions,
        seeds: Sequence[int],
        given: FixedCells | None,
        keep_steps: bool,
    ) -> Paintings:
        """Paintings of n captions (:func:`diptych.model.decoding.decode.paint_captions`)."""
        texts = Texts.of(self.tokenizer.encode(captions, self.length), self.tokenizer.pad)
        ids = texts.to(self.codebook.device)
        return paint_captions(
            self.transformer, self.tokenizer, self.codebook, ids, options, seeds, given, keep_steps
        )

    def step_count(self, options: PaintOptions) -> int:
        """Those of mask-predict are an option; other methods paint all cells, one or some at a time."""
        cells = self.transformer.config.cells
        if options.method == "mask_predict":
            return options.steps
        if options.method == "gibbs":
            return options.sweeps * math.ceil(cells / options.cells_at_once)
        return cells + options.extra_steps


class UnifiedAnswerDecoder:
    """Answers by the transformer (:class:`diptych.model.packaged.answering.AnswerDecoder`)."""

    def __init__(self, captions: UnifiedCaptionDecoder) -> None:
        """``captions``: sees pictures as questions about them do."""
        self.transformer, self.tokenizer, self.captions = captions.transformer, captions.tokenizer, captions

    @property
    def answers(self) -> bool:
        return self.transformer.config.answers > 0

    @property
    def verifies(self) -> bool:
        return self.transformer.config.pairs

    def see(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Visual states (:func:`diptych.model.decoding.caption.encode_images`)."""
        return encode_images(self.transformer, self.captions.see(images))

    def answer(self, seen: list[Tensor], ids: Tensor) -> Tensor:
        """Logits of the answer head (:func:`diptych.model.decoding.answer.question_states`)."""
        return answer_logits(self.transformer, self.tokenizer, seen, ids)

    def verify(self, left: list[Tensor], right: list[Tensor], ids: Tensor) -> Tensor:
        """Logits of the head for pairs, which reads a pass with each of both pictures."""
        states = (
            question_states(self.transformer, self.tokenizer, seen, ids[:, None]) for seen in (left, right)
        )
        return self.transformer.pair_logits(*states)

    def question_attention(self, seen: list[Tensor], ids: Tensor) -> list[WordAttention]:
        """Where words look (:func:`diptych.model.packaged.attention.question_attention`)."""
        return question_attention(self.transformer, self.tokenizer, seen, ids)
