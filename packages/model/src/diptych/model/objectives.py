"""Losses of both training stages (UMT section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.decisions import PAPER, Decisions
from diptych.model.decoding.caption import word_log_probabilities
from diptych.model.decoding.paint import PaintText, mask_predict_counts
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.transformer import UnifiedTransformer

PROMPT = "A photo depicts "


class Scorer(Protocol):
    """A CLIP (``diptych.eval.clip.Clip``)."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Float ``[n, 3, H, W]`` in 0..1 to unit vectors ``[n, E]``, differentiable."""

    def encode_texts(self, texts: list[str]) -> Tensor:
        """n strings to unit vectors ``[n, E]``."""


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of logits ``[m, C]`` and targets int64 ``[m]`` (UMT equations 1 and 3; 5.1).

    The target has probability 1 - smoothing and every other class smoothing / (C - 1), as in the papers' code;
    torch's own ``label_smoothing`` shares its mass among all C classes, hence the factor.
    """
    classes = logits.shape[-1]
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing * classes / (classes - 1))


def sample_mask(n: int, cells: int, least: float = 0.0, decisions: Decisions = PAPER) -> Tensor:
    """Draw the cells to predict, bool ``[n, cells]``: per sample a ratio uniform in (``least``, 1], rounded up to
    whole cells, then that many cells at random (X-LXMERT 5.1, where ``least`` is 0). With ``decisions.shared_masks``
    all samples have the same cells, their number uniform from a tenth of the cells to all. Uses torch's global
    generator."""
    if decisions.shared_masks:
        count = int(torch.randint(max(1, cells // 10), cells + 1, ()))
        return (torch.randperm(cells) < count).expand(n, cells).clone()
    counts = ((least + (1 - least) * torch.rand(n, 1)) * cells).ceil().clamp(min=1)
    ranks = torch.rand(n, cells).argsort(1).argsort(1)
    return ranks < counts


def caption_loss(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, features: Tensor, ids: Tensor, smoothing: float
) -> Tensor:
    """Word-level loss (UMT equation 1) of several captions per image, which share one visual pass.

    Args:
        features: grid features float ``[n, cells, D]``.
        ids: int64 ``[n, c, t]``. Every token after ``[CLS]`` up to ``[SEP]`` is a target; padding is not.
    """
    ids = ids.flatten(0, 1)
    ids = ids[:, : int((ids != tokenizer.pad).sum(1).max())]
    targets = ids[:, 1:]
    supervised = targets != tokenizer.pad
    keys_values = model.visual_keys_values(model.encode_visual_prefix(features))
    states = model.caption_states(ids[:, :-1], keys_values)
    return smoothed_cross_entropy(model.word_logits(states[supervised]), targets[supervised], smoothing)


def sample_positions(tokenizer: CaptionTokenizer, ids: Tensor, decisions: Decisions = PAPER) -> Tensor:
    """Draw the token of each caption that is to be predicted: int64 ``[...]`` for ids ``[..., t]``, uniform over the
    tokens after [CLS] up to [SEP], with ``decisions.padding_is_target`` over one [PAD] more if there is one. Uses
    torch's global generator."""
    targets = (ids != tokenizer.pad).sum(-1) - 1
    if decisions.padding_is_target:
        targets = (targets + 1).clamp(max=ids.shape[-1] - 1)
    return 1 + (torch.rand(targets.shape).to(ids.device) * targets).long()


def masked_caption_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    ids: Tensor,
    positions: Tensor,
    smoothing: float,
) -> Tensor:
    """Word-level loss (UMT equation 1) by the ``masked`` scheme: one word of each caption is hidden and predicted from
    the image and the words before it.

    Args:
        features: grid features float ``[n, cells, D]``.
        ids: int64 ``[n, c, t]``, c captions per image; they share the visual layers that no word reaches.
        positions: int64 ``[n, c]``, the word to predict (:func:`sample_positions`).
    """
    visual = model.encode_visual(features)
    if ids.shape[1] > 1:
        visual = visual.repeat_interleave(ids.shape[1], 0)
    ids, positions = ids.flatten(0, 1), positions.flatten()
    ids = ids[:, : int(positions.max()) + 1]
    places = torch.arange(ids.shape[1], device=ids.device)
    targets = ids.gather(1, positions[:, None])[:, 0]
    hidden = ids.scatter(1, positions[:, None], tokenizer.mask)
    logits = model.masked_caption_logits(hidden, places <= positions[:, None], visual, positions)
    return smoothed_cross_entropy(logits, targets, smoothing)


def paint_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    codes: Tensor,
    ids: Tensor,
    masked: Tensor,
    smoothing: float,
) -> Tensor:
    """Grid-level loss (UMT equation 3): codes int64 ``[n, cells]`` at ``masked`` (bool) from the other cells' codebook
    vectors and the text int64 ``[n, t]``."""
    ids = ids[:, : int((ids != tokenizer.pad).sum(1).max())]
    text, bias = model.encode_text(ids, ids != tokenizer.pad)
    visual = model.encode_visual(codebook[codes], masked)
    logits = model.paint_logits(text, bias, visual, masked)
    return smoothed_cross_entropy(logits, codes[masked], smoothing)


def scst_loss(log_probabilities: Tensor, words: Tensor, rewards: Tensor, baselines: Tensor) -> Tensor:
    """Self-critical loss, whose gradient estimates that of UMT equation 2.

    Args:
        log_probabilities: float ``[n, t]``, of the sampled words, with gradient.
        words: bool ``[n, t]``, true at words up to and including the full stop, so nothing after it is paid.
        rewards, baselines: float ``[n]``, CIDEr-D of the sampled and of the greedy caption.

    Returns:
        The mean over captions of -(reward - baseline) * sum of log-probabilities.
    """
    caption_log_probabilities = (log_probabilities * words).sum(1)
    return -((rewards - baselines) * caption_log_probabilities).mean()


def sampled_log_probabilities(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    prefix: list[Tensor],
    ids: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Score sampled captions ``ids`` int64 ``[n, t]`` in one pass with gradients.

    Returns:
        log-probabilities float32 ``[n, t - 1]`` of ``ids[:, 1:]`` and bool ``[n, t - 1]``, which of them are words; the
        other log-probabilities are 0.
    """
    targets = ids[:, 1:]
    words = (targets != tokenizer.pad) & (targets != tokenizer.sep)
    states = model.caption_states(ids[:, :-1], model.visual_keys_values(prefix))
    choices = word_log_probabilities(model.word_logits(states[words]), tokenizer, temperature)
    taken = choices.gather(-1, targets[words][:, None])[:, 0]
    return torch.zeros(targets.shape, device=ids.device).masked_scatter(words, taken), words


def relaxed_painting(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    ids: Tensor,
    steps: int,
    guidance: float,
    temperature: float,
) -> Tensor:
    """Paint by mask-predict-k with Gumbel-softmax codes (UMT 4.2.2): expected codebook vectors ``[n, cells, D]``.

    Each step samples its masked cells with Gumbel noise: the soft sample softmax((logits + noise) / temperature)
    carries the gradient, its largest entry is the code that the next steps see. A cell's vector comes from the step
    that last predicted it. Confidence is as in :func:`diptych.model.decoding.paint.paint_codes`. No gradient flows
    through the codes that one step shows the next. Uses torch's global generator.
    """
    n, cells, device = len(ids), model.config.cells, ids.device
    text = PaintText(model, tokenizer, ids, guidance)
    codes = torch.zeros(n, cells, dtype=torch.int64, device=device)
    confidences = torch.zeros(n, cells, device=device)
    vectors = torch.zeros(n, cells, codebook.shape[1], device=device)
    for count in mask_predict_counts(cells, steps):
        positions = confidences.argsort(dim=1, stable=True)[:, :count].sort(1).values
        masked = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, positions, True)
        logits = text.logits(codebook[codes], masked, positions)
        gumbel = -torch.empty_like(logits).exponential_().clamp(min=1e-20).log()
        relaxed = ((logits + gumbel) / temperature).softmax(-1)
        expected = relaxed @ codebook
        vectors = vectors.scatter(1, positions[..., None].expand_as(expected), expected.to(vectors.dtype))
        chosen = relaxed.detach().argmax(-1)
        codes = codes.scatter(1, positions, chosen)
        chances = logits.detach().log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
        confidences = confidences.scatter(1, positions, chances)
    return vectors


def clip_loss(vectors: Tensor, captions: Sequence[str], generator: nn.Module, scorer: Scorer) -> Tensor:
    """CLIP-based image loss (UMT equation 4): the mean of -max(cos(image, "A photo depicts " + caption), 0).

    Args:
        vectors: ``[n, cells, D]`` from :func:`relaxed_painting`.
        generator: vectors to images ``[n, 3, S, S]`` in -1..1. It and the scorer should be frozen, in eval mode.
    """
    images = (generator(vectors) + 1) / 2
    with torch.no_grad():
        texts = scorer.encode_texts([PROMPT + caption for caption in captions])
    cosines = (scorer.encode_images(images) * texts).sum(-1)
    return -cosines.clamp(min=0).mean()
