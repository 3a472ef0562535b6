"""Captions and paintings as the options say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from diptych.model.decoding.beam import beam_search
from diptych.model.decoding.caption import (
    Captions,
    NextWord,
    encode_images,
    next_word_of,
    write_captions,
)
from diptych.model.decoding.cells import (
    paint_easiest_first,
    paint_features_in_order,
    paint_in_order,
    random_order,
    row_order,
    sweep_order,
)
from diptych.model.decoding.decisions import PAPER, Decisions
from diptych.model.decoding.noise import sample_seeds
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import FixedCells, Paintings, PaintText, free_cells, mask_predict
from diptych.model.decoding.sampling import CodeSampling
from diptych.model.decoding.schedules import schedule_counts
from diptych.model.decoding.words import WordFilters, start_words
from diptych.model.devices import Texts
from diptych.model.errors import UserError
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer


@torch.no_grad()
def caption_images(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    options: CaptionOptions,
    seeds: Sequence[int] | None = None,
    decisions: Decisions = PAPER,
) -> Captions:
    """Caption images by the attention that the model's config names.

    Args:
        features: float ``[n, cells, D]``: the grid features, or what else the model captions by
            (:func:`diptych.model.image_features.caption_input`).
        seeds: one whole number >= 0 per image, needed for sampling; the same seed gives an image the same captions in
            every batch.

    Returns:
        ``options.samples`` captions per image, side by side, the best first for beams:
        :func:`diptych.model.decoding.rerank.rerank` chooses among them. They share the visual pass.

    Raises:
        UserError: there is no image, the features are not those of this model or not finite, or ``options.start`` does
            not fit. The model should be in eval mode.
    """
    if len(features) == 0:
        raise UserError("there is no image to caption")
    next_word = next_word_of(model, tokenizer, encode_images(model, features), options.length)
    return captions_by(next_word, tokenizer, len(features), options, features.device, seeds, decisions)


def captions_by(
    next_word: NextWord,
    tokenizer: CaptionTokenizer,
    n: int,
    options: CaptionOptions,
    device: torch.device,
    seeds: Sequence[int] | None = None,
    decisions: Decisions = PAPER,
) -> Captions:
    """Caption n images by ``next_word``, which has read them; the rest as in :func:`caption_images`."""
    length, samples = options.length, options.samples
    start = start_words(tokenizer, options.start, length)
    if options.method == "beam":
        found = beam_search(
            next_word,
            tokenizer,
            n,
            length,
            device,
            options.beams,
            options.groups,
            options.diversity,
            options.length_power,
            start,
            WordFilters(options.no_repeat) if options.no_repeat else None,
            decisions,
        )
        return Captions(
            found.ids[:, :samples].flatten(0, 1), found.log_probabilities[:, :samples].flatten(0, 1)
        )
    if samples > 1:
        next_word.keep(torch.arange(n).repeat_interleave(samples))
    filters = WordFilters(options.no_repeat, options.top_k, options.top_p)
    return write_captions(
        next_word,
        tokenizer,
        n * samples,
        length,
        device,
        options.temperature if options.method == "sample" else 0.0,
        None if seeds is None else sample_seeds(seeds, samples),
        decisions,
        start,
        None if filters == WordFilters() else filters,
    )


@torch.no_grad()
def paint_captions(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    ids: Tensor | Texts,
    options: PaintOptions,
    seeds: Sequence[int] | None = None,
    given: FixedCells | None = None,
    keep_steps: bool = False,
    decisions: Decisions = PAPER,
) -> Paintings:
    """Paint captions.

    Args:
        codebook: float ``[K, D]``, the centroids that written cells show.
        ids: int64 ``[n, t]`` from ``tokenizer.encode``; as Texts they have been cut before, so that a GPU is not asked.
        seeds: one whole number >= 0 per caption, needed where ``options.is_random``; the same seed gives a caption the
            same paintings in every batch.
        given: cells of each caption's paintings that are painted already and stay as they are. Steps and schedules then
            count the free cells only.
        keep_steps: also return the codes after each step.

    Returns:
        ``options.samples`` paintings per caption, side by side: :func:`diptych.model.decoding.rerank.rerank` chooses
        among them. They share the encoded text.

    Raises:
        UserError: there is no caption, one is all padding, or ``codebook``, ``given`` or ``options.steps`` does not fit.
            The model should be in eval mode.
    """
    if options.is_random and (seeds is None or len(seeds) != len(ids)):
        raise ValueError("random paintings need one seed per caption")
    cells, samples = model.config.cells, options.samples
    text = PaintText(model, tokenizer, ids, options.guidance)
    if given is not None:
        given.check(len(ids), cells, len(codebook))
    if samples > 1:
        text = text.repeat(samples)
        if given is not None:
            given = FixedCells(
                given.codes.repeat_interleave(samples, 0), given.fixed.repeat_interleave(samples, 0)
            )
    seeds = sample_seeds(seeds or [], samples)
    sampling, noise = CodeSampling.of(options), options.confidence_noise
    if options.method == "mask_predict":
        schedule = partial(schedule_counts, steps=options.steps, schedule=options.schedule, cells=cells)
        return mask_predict(text, codebook, schedule, sampling, noise, seeds, keep_steps, decisions, given)
    if options.method == "easiest":
        return paint_easiest_first(text, codebook, sampling, noise, seeds, keep_steps, given)
    free = free_cells(text, codebook, given) if given else torch.ones(len(text.text), cells, dtype=torch.bool)
    order = order_of(options, free, seeds)
    return paint_in_order(text, codebook, order, sampling, seeds, keep_steps, given)


@torch.no_grad()
def paint_features(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    ids: Tensor | Texts,
    options: PaintOptions,
    seeds: Sequence[int],
) -> Tensor:
    """Paint captions with a transformer that regresses features, as LXMERT would (X-LXMERT 4.1): float32 ``[n, cells, D]``, for
    an image generator that was trained on features.

    Args:
        ids: int64 ``[n, t]`` from ``tokenizer.encode``.
        options: methods ``rows`` and ``random`` alone, without guidance or temperature: a regression has one answer, without a
            probability, so that neither confidences nor draws are to be had. After as many steps as there are cells
            ``random`` goes on with cells that are painted, Gibbs sampling in the paper's words.
        seeds: one whole number >= 0 per caption, of the order.

    Raises:
        UserError: another option, no caption, or a transformer that predicts codes. It should be in eval mode.
    """
    in_order = options.method in ("rows", "random")
    if not in_order or options != PaintOptions(method=options.method, extra_steps=options.extra_steps):
        raise UserError(
            "a transformer that regresses features paints cell by cell, by method rows or random, without guidance, temperature "
            "or samples"
        )
    text = PaintText(model, tokenizer, ids)
    free = torch.ones(len(ids), model.config.cells, dtype=torch.bool)
    return paint_features_in_order(text, order_of(options, free, seeds))


def order_of(options: PaintOptions, free: Tensor, seeds: Sequence[int]) -> Tensor:
    """The order in which ``free`` cells (bool ``[n, cells]``) are painted one by one or some at a time, int64
    ``[n, steps, cells at a time]``, on the CPU."""
    free = free.cpu()
    if options.method == "rows":
        return row_order(free)
    if options.method == "random":
        return random_order(free, seeds, options.extra_steps)
    return sweep_order(free, seeds, options.sweeps, min(options.cells_at_once, free.shape[1]))
