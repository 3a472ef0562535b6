"""Captions and paintings by BiART, token by token from caches (L-Verse 3.6).

Captions are written by what writes all captions (:mod:`diptych.model.decoding.caption`, :mod:`diptych.model.decoding.beam`); they end
at their full stop, as the paper cuts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.model.decoding.caption import CachedNextWord, Captions
from diptych.model.decoding.decode import captions_by
from diptych.model.decoding.noise import sample_seeds, uniform_noise
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import FixedCells, Paintings, texts_to_paint
from diptych.model.decoding.sampling import CodeSampling
from diptych.model.devices import Texts, sent
from diptych.model.errors import UserError
from diptych.model.networks.biart import GENERATED, BiART, Reference
from diptych.model.tokenizer import CaptionTokenizer

# Bytes of the caches of all paintings that are painted at a time.
CACHE_BYTES = 2**30


class BiARTNextWord(CachedNextWord):
    """Words after images that are read (:class:`diptych.model.decoding.caption.NextWord`)."""

    def __init__(self, model: BiART, images: Reference, length: int) -> None:
        super().__init__(images.keys_values, model.caches(length - 2))
        self.model = model

    def logits(self, ids: Tensor) -> Tensor:
        newest = self.newest(ids)
        tokens = self.model.text_tokens(newest, GENERATED, ids.shape[1] - newest.shape[1])
        images = Reference(self.keys_values, None)
        return self.model.word_head(self.model.write(tokens, images, self.caches)[:, -1])


@torch.no_grad()
def caption_codes(
    model: BiART,
    tokenizer: CaptionTokenizer,
    codes: Tensor,
    options: CaptionOptions,
    seeds: Sequence[int] | None = None,
) -> Captions:
    """Caption images, codes int64 ``[n, cells]``: ``options.samples`` captions each, side by side, as
    :func:`diptych.model.decoding.decode.caption_images` does. The model should be in eval mode."""
    if len(codes) == 0:
        raise UserError("there is no image to caption")
    next_word = BiARTNextWord(model, model.read_image(codes)[1], options.length)
    return captions_by(next_word, tokenizer, len(codes), options, codes.device, seeds)


@torch.no_grad()
def paint_texts(
    model: BiART,
    tokenizer: CaptionTokenizer,
    ids: Tensor | Texts,
    options: PaintOptions,
    seeds: Sequence[int] | None = None,
    given: FixedCells | None = None,
    keep_steps: bool = False,
) -> Paintings:
    """Paint captions cell by cell, from the top left to the bottom right.

    Args:
        ids: int64 ``[n, t]`` from ``tokenizer.encode``.
        options: method ``rows``; temperature, ``top_k``, ``top_p``, guidance and samples as there.
        seeds: one whole number >= 0 per caption, needed where ``options.is_random``; the same seed gives a caption the same paintings
            in every batch.
        given: cells of n paintings that are there already. What is painted sees those above and to the left of it alone.
        keep_steps: also return the codes after each row of cells.

    Returns:
        ``options.samples`` paintings of each caption, side by side. They share the text that is read; so many are painted at a time
        that their caches stay within a gigabyte.

    Raises:
        UserError: another method, no caption, or one that is all padding. The model should be in eval mode.
    """
    if options.method != "rows":
        raise UserError(f"this transformer paints cell by cell, by method rows, not {options.method}")
    written = texts_to_paint(tokenizer, ids)
    ids = written.ids
    if given is not None:
        given.check(len(ids), model.config.cells, model.config.codebook_size)
    if options.is_random and (seeds is None or len(seeds) != len(ids)):
        raise ValueError("random paintings need one seed per caption")
    texts = [model.read_text(ids, written.visible(tokenizer.pad))[1]]
    if options.guidance != 1:
        texts.append(model.read_text(sent(tokenizer.no_text(1), ids.device), None)[1])
    noise = None
    if options.is_random:
        each = sample_seeds(seeds or [], options.samples)
        noise = uniform_noise(each, model.config.cells, device=ids.device)
    config = model.config
    row_bytes = 8 * config.layers * config.width * config.cells * len(texts)
    at_once = max(1, CACHE_BYTES // row_bytes)
    captions_at_once = max(1, at_once // options.samples)
    painted = []
    for first in range(0, len(ids), captions_at_once):
        rows = slice(first, min(first + captions_at_once, len(ids)))
        text = texts[0].rows(rows)
        for done in range(0, options.samples, at_once):
            count = min(at_once, options.samples - done)
            own = None
            if noise is not None:
                own = noise.view(len(ids), options.samples, -1)[rows, done : done + count].flatten(0, 1)
            fixed = given and FixedCells(
                given.codes[rows].repeat_interleave(count, 0), given.fixed[rows].repeat_interleave(count, 0)
            )
            painted.append(paint_rows(model, [text, *texts[1:]], count, options, own, fixed))
    codes = torch.cat(painted)
    return Paintings(
        codes, rows_painted(codes, config.grid_size, given, options.samples) if keep_steps else None
    )


def rows_painted(codes: Tensor, grid_size: int, given: FixedCells | None, samples: int) -> Tensor:
    """The codes int64 ``[n * samples, cells]`` after each row of the grid, -1 in what comes later but for given cells: int64
    ``[n * samples, grid_size, cells]``."""
    row = torch.arange(codes.shape[1], device=codes.device) // grid_size
    known = row <= torch.arange(grid_size, device=codes.device)[:, None]  # [grid_size, cells]
    known = known.expand(len(codes), -1, -1)
    if given is not None:
        known = known | given.fixed.repeat_interleave(samples, 0)[:, None]
    return torch.where(known, codes[:, None], -1)


def paint_rows(
    model: BiART,
    texts: Sequence[Reference],
    samples: int,
    options: PaintOptions,
    noise: Tensor | None,
    given: FixedCells | None = None,
) -> Tensor:
    """``samples`` paintings of each of n texts, side by side: codes int64 ``[n * samples, cells]``.

    Args:
        texts: the texts that are read; with guidance also "no text", of one row, which all paintings share.
        noise: float64 ``[n * samples, cells]`` in [0, 1), where codes are drawn.
        given: cells of the n * samples paintings that are there already.
    """
    cells, count = model.config.cells, len(texts[0]) * samples
    device = texts[0].keys_values[0][0].device
    caches, sampling = [model.caches(cells) for _ in texts], CodeSampling.of(options)
    codes = torch.zeros(count, cells, dtype=torch.int64, device=device)
    tokens = model.image_tokens(codes[:, :0], GENERATED)
    for cell in range(cells):
        logits = [
            model.code_head(model.write(tokens, text, own)[:, 0]).float()
            for text, own in zip(texts, caches, strict=True)
        ]
        guided = logits[0] if len(logits) == 1 else logits[1] + options.guidance * (logits[0] - logits[1])
        taken = sampling.take(guided, None if noise is None else noise[:, cell])
        if given is not None:
            taken = torch.where(given.fixed[:, cell], given.codes[:, cell], taken)
        codes[:, cell] = taken
        tokens = model.code_token(codes[:, cell], cell)
    return codes
