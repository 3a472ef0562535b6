"""The family ``l_verse``: codes of an AugVAE, captions and paintings token by token by BiART."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diptych.model.decoding.biart import caption_codes, paint_texts
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import FixedCells, Paintings
from diptych.model.devices import Texts
from diptych.model.image_tokens import AugVAEEncoder
from diptych.model.networks.aug_vae import AugVAE
from diptych.model.networks.biart import BiART
from diptych.model.packaged.attention import WordAttention, grouped
from diptych.model.packaged.directory import PackageConfig
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.parts import Parts
from diptych.model.pixels import from_uint8
from diptych.model.pretrained import load_biart
from diptych.model.tokenizer import CaptionTokenizer


def load_l_verse(folder: Path, config: PackageConfig, machine: Machine) -> Parts:
    """Load a package of this family.

    Raises:
        UserError: a file is missing, unreadable or does not fit the others.
    """
    model, tokenizer, image_tokenizer = load_biart(folder, machine.device)
    images = AugVAETokenizer(image_tokenizer, machine)
    captions = BiARTCaptionDecoder(model, tokenizer, images)
    paintings = BiARTPaintDecoder(model, tokenizer, config.captioning.length, machine)
    return Parts(tokenizer, images, captions, paintings)


class AugVAETokenizer:
    """A single-level AugVAE (:class:`diptych.model.packaged.seeing.ImageTokenizer`)."""

    def __init__(self, model: AugVAE, machine: Machine) -> None:
        self.encoder, self.model, self.machine = AugVAEEncoder(model), model, machine
        self.cells, self.codebook_size = model.config.cells, model.config.codebook_size
        self.grid_size, self.image_size = (
            model.config.grid_size(model.config.coded_levels[0]),
            model.config.image_size,
        )

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """What is quantized of each cell, float32 ``[n, cells, D]``."""
        with torch.autocast(self.machine.device.type, enabled=False):
            (maps,) = self.model.features(from_uint8(self._prepared(images), self.machine.device))
        return maps.float().flatten(2).transpose(1, 2)

    def codes(self, images: Sequence[Image.Image]) -> Tensor:
        """Int64 ``[n, cells]``."""
        return self.encoder.encode(self._prepared(images))

    def pixels(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[n, cells]`` to pixels float32 ``[n, 3, S, S]`` in -1..1; -1 is drawn as the mean of the codebook."""
        with torch.autocast(self.machine.device.type, enabled=False):
            return self.model.pixels(codes.to(self.machine.device)).float()

    def _prepared(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self.encoder.prepare(image) for image in images]).to(self.machine.device)


class BiARTCaptionDecoder:
    """Captions by BiART (:class:`diptych.model.packaged.captioning.CaptionDecoder`)."""

    def __init__(self, model: BiART, tokenizer: CaptionTokenizer, images: AugVAETokenizer) -> None:
        self.model, self.tokenizer, self.images = model, tokenizer, images

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Codes int64 ``[n, cells]``."""
        return self.images.codes(images)

    def write(self, seen: Tensor, options: CaptionOptions, seeds: Sequence[int]) -> Captions:
        """Captions of n images (:func:`diptych.model.decoding.biart.caption_codes`)."""
        return caption_codes(self.model, self.tokenizer, seen, options, seeds)

    def attention(self, seen: Tensor, ids: Tensor) -> list[WordAttention]:
        """Where words look (:meth:`diptych.model.networks.biart.BiART.attention_to_image`)."""
        images = self.model.read_image(seen)[1].rows(
            torch.arange(len(seen), device=seen.device).repeat_interleave(len(ids) // len(seen))
        )
        weights = self.model.attention_to_image(ids[:, :-1], images).cpu()
        return [
            grouped(self.tokenizer, self.tokenizer.words(row), own)
            for row, own in zip(ids, weights, strict=True)
        ]


class BiARTPaintDecoder:
    """Paintings by BiART (:class:`diptych.model.packaged.painting.PaintDecoder`)."""

    def __init__(self, model: BiART, tokenizer: CaptionTokenizer, length: int, machine: Machine) -> None:
        """``length``: of encoded captions, [CLS] and [SEP] included."""
        self.model, self.tokenizer = model, tokenizer
        self.length, self.device = length, machine.device

    def paint(
        self,
        captions: list[str],
        options: PaintOptions,
        seeds: Sequence[int],
        given: FixedCells | None,
        keep_steps: bool,
    ) -> Paintings:
        """Paintings of n captions (:func:`diptych.model.decoding.biart.paint_texts`)."""
        texts = Texts.of(self.tokenizer.encode(captions, self.length), self.tokenizer.pad)
        ids = texts.to(self.device)
        return paint_texts(self.model, self.tokenizer, ids, options, seeds, given, keep_steps)

    def step_count(self, options: PaintOptions) -> int:
        """A step is a row of cells."""
        return self.model.config.grid_size
