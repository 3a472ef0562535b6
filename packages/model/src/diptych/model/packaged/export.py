"""The captioner and the painter as programs of torch.export: to run where this code is not, with the same result.

A program is one step; the loops around them are :func:`run_captioner` and :func:`run_painter`, which use nothing else.
(Whole decodings have 17 times as many operations, and took torch.export minutes where these take seconds.)

``captioner.pt2``
    grid features float32 ``[n, 64, D]``, ids int64 ``[n, length]`` of which those before ``position`` are written, and
    ``position`` int64 ``[n]``, from 1, to the likeliest word there, int64 ``[n]``.
``painter.pt2``
    ids int64 ``[n, length]`` of :meth:`diptych.model.tokenizer.CaptionTokenizer.encode`, codes int64 ``[n, 64]`` and the
    cells that are masked, bool ``[n, 64]``, to the likeliest codes int64 ``[n, 64]`` and their log-probabilities float32
    ``[n, 64]`` under the package's guidance.
``image_generator.pt2``
    codes int64 ``[n, 64]`` to pixels float32 ``[n, 3, S, S]`` in -1..1.

``torch.export.load(file).module()`` is a callable for any n from 1 to 256.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.model.decoding.caption import encode_images, word_log_probabilities
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.schedules import schedule_counts
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input
from diptych.model.networks.image_generator import ImageGenerator
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer

CAPTIONER_FILE, PAINTER_FILE, GENERATOR_FILE = "captioner.pt2", "painter.pt2", "image_generator.pt2"
MOST = 256
TIES = 0.001  # share of cells that may differ: those whose two likeliest codes are equal but for rounding
Program = Callable[..., Tensor]


class Captioner(nn.Module):
    """The likeliest word at one position of each caption."""

    def __init__(self, model: UnifiedTransformer, tokenizer: CaptionTokenizer, codebook: Tensor) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.codebook: Tensor | None
        self.register_buffer("codebook", codebook if model.config.image_features == "discrete" else None)

    def forward(self, features: Tensor, ids: Tensor, position: Tensor) -> Tensor:
        """Features float ``[n, 64, D]``, ids int64 ``[n, length]``, position int64 ``[n]`` to words int64 ``[n]``."""
        model = self.model
        if self.codebook is not None:
            features = caption_input(model.config, self.codebook, features)
        images = encode_images(model, features)
        if model.config.caption_attention == "prefix":
            states = model.caption_states(ids, model.visual_keys_values(images))
            before = (position - 1)[:, None, None].expand(-1, 1, states.shape[2])
            logits = model.word_logits(states.gather(1, before)[:, 0])
        else:
            places = torch.arange(ids.shape[1])
            ids = torch.where(places == position[:, None], self.tokenizer.mask, ids)
            logits = model.masked_caption_logits(ids, places <= position[:, None], images[0], position)
        return word_log_probabilities(logits, self.tokenizer).argmax(-1)


class Painter(nn.Module):
    """The likeliest codes, given those of the cells that are not masked."""

    def __init__(
        self, model: UnifiedTransformer, tokenizer: CaptionTokenizer, codebook: Tensor, guidance: float
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.guidance = model, tokenizer, guidance
        self.register_buffer("codebook", codebook)
        self.register_buffer("cells", torch.arange(model.config.cells))

    def forward(self, ids: Tensor, codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 ``[n, length]``, codes int64 ``[n, 64]``, masked bool ``[n, 64]`` to codes int64 and log-probabilities
        float ``[n, 64]``."""
        model, features, n = self.model, self.codebook[codes], ids.shape[0]
        if self.guidance != 1:  # captions, and as many times no text, in one pass
            nothing = torch.full_like(ids, self.tokenizer.pad)
            nothing[:, :2] = self.tokenizer.no_text(1)
            ids = torch.cat([ids, nothing])
        text, bias = model.encode_text(ids, ids != self.tokenizer.pad)
        visual = model.encode_visual(features, masked)
        if self.guidance != 1:
            visual = torch.cat([visual, visual])
        logits = model.paint_logits(text, bias, visual, self.cells.expand(ids.shape[0], -1)).float()
        if self.guidance != 1:
            guided, unguided = logits[:n], logits[n:]
            logits = unguided + self.guidance * (guided - unguided)
        chances = logits.log_softmax(-1).max(-1)
        return chances.indices, chances.values


class Pixels(nn.Module):
    """The image generator on codes."""

    def __init__(self, generator: ImageGenerator, codebook: Tensor) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("codebook", codebook)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[n, 64]`` to pixels float ``[n, 3, S, S]``."""
        return self.generator(self.codebook[codes])


def run_captioner(
    captioner: Program, features: Tensor, length: int, cls: int, sep: int, pad: int, stop: int
) -> Tensor:
    """Greedy captions of n pictures, int64 ``[n, length]``: ``[CLS] words . [SEP] [PAD] ...``; the ids of these tokens are
    those of tokenizer.json."""
    ids = torch.full((len(features), length), pad)
    ids[:, 0] = cls
    unfinished = torch.ones(len(features), dtype=torch.bool)
    for position in range(1, length - 1):
        words = captioner(features, ids, torch.full((len(features),), position))
        ids[unfinished, position] = words[unfinished]
        ids[unfinished, position + 1] = sep
        unfinished &= words != stop
    return ids


def run_painter(
    painter: Callable[..., tuple[Tensor, Tensor]], ids: Tensor, cells: int, counts: list[int]
) -> Tensor:
    """Codes int64 ``[n, cells]`` of n captions by mask-predict; ``counts``: how many cells each step predicts (64, 48, 32,
    16)."""
    codes, confidences = torch.zeros(len(ids), cells, dtype=torch.int64), torch.zeros(len(ids), cells)
    for count in counts:
        least = confidences.argsort(dim=1, stable=True)[:, :count]
        masked = torch.zeros(len(ids), cells, dtype=torch.bool).scatter(1, least, True)
        likeliest, chances = painter(ids, codes, masked)
        codes = torch.where(masked, likeliest, codes)
        confidences = torch.where(masked, chances, confidences)
    return codes


def export_programs(
    folder: Path,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    generator: ImageGenerator,
    captioning: CaptionOptions,
    painting: PaintOptions,
    features: Tensor,
    captions: list[str],
) -> dict[str, float]:
    """Write the programs into ``folder``, read them again and compare what they caption and paint with the decoders.

    Args:
        model, generator: in eval mode, on the CPU, float32.
        captioning, painting: give the length, the steps and the guidance; the likeliest words and codes are taken.
        features: grid features float ``[n, 64, D]`` of pictures to compare on, n from 2.
        captions: m texts to compare on, m from 2.

    Returns:
        Shares of ``captions`` and painted ``cells`` that agree, and the largest difference of ``pixels`` (-1..1).

    Raises:
        UserError: a program does another thing than the decoders, or the painting method cannot be exported.
    """
    if painting.method != "mask_predict":
        raise UserError(f"export: paintings by method {painting.method} cannot be exported; use mask_predict")
    length, cells = captioning.length, model.config.cells
    ids = tokenizer.encode(captions, length)
    greedy = PaintOptions(steps=painting.steps, schedule=painting.schedule, guidance=painting.guidance)
    seen = caption_input(model.config, codebook, features)
    wanted_ids = caption_images(model, tokenizer, seen, CaptionOptions(length=length)).ids
    wanted_codes = paint_captions(model, tokenizer, codebook, ids, greedy).codes

    folder.mkdir(parents=True, exist_ok=True)
    two = torch.zeros(2, cells, dtype=torch.int64)
    captioner = exported(
        Captioner(model, tokenizer, codebook),
        (features[:2], wanted_ids[:2], torch.tensor([1, 2])),
        folder / CAPTIONER_FILE,
    )
    painter = exported(
        Painter(model, tokenizer, codebook, painting.guidance), (ids[:2], two, two > 0), folder / PAINTER_FILE
    )
    pixels = exported(Pixels(generator, codebook), (two,), folder / GENERATOR_FILE)

    counts = schedule_counts(cells, painting.steps, painting.schedule, cells)
    with torch.no_grad():
        special = (tokenizer.cls, tokenizer.sep, tokenizer.pad, tokenizer.stop)
        found_ids = run_captioner(captioner, features, length, *special)
        found_codes = run_painter(painter, ids, cells, counts)
        difference = pixels(wanted_codes) - generator(codebook[wanted_codes])
    agreement = {
        "captions": float((found_ids == wanted_ids).all(1).float().mean()),
        "cells": float((found_codes == wanted_codes).float().mean()),
        "pixels": float(difference.abs().max()),
    }
    if agreement["captions"] < 1 or agreement["cells"] < 1 - TIES or agreement["pixels"] > 1e-3:
        raise UserError(f"export: the programs do not do what the decoders do: {agreement}")
    return agreement


def exported(module: nn.Module, examples: tuple[Tensor, ...], file: Path) -> Callable[..., Tensor]:
    """Write a module as a program for 1 to 256 rows like those of ``examples``, two rows each; returns it, read again."""
    rows = torch.export.Dim("rows", min=1, max=MOST)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = tuple({0: rows} for _ in examples)
        program = torch.export.export(module.eval(), examples, dynamic_shapes=shapes, strict=False)
        program.example_inputs = None  # which would be pickled
        torch.export.save(program, file)
        return torch.export.load(file).module()
