"""Losses of token-level training (UMT 4.1.1 and 4.2.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.model.decoding.caption import encode_images
from diptych.model.decoding.decisions import PAPER, Decisions
from diptych.model.devices import Places, Texts
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.answers import answer_loss
from diptych.model.tokenizer import CaptionTokenizer


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of logits ``[m, C]`` and targets int64 ``[m]`` (UMT equations 1 and 3; 5.1).

    The target has probability 1 - smoothing and every other class smoothing / (C - 1), as in the papers' code;
    torch's own ``label_smoothing`` shares its mass among all C classes, hence the factor.
    """
    classes = logits.shape[-1]
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing * classes / (classes - 1))


def word_loss(head: Callable[[Tensor], Tensor], states: Tensor, texts: Texts, smoothing: float) -> Tensor:
    """Mean loss of the words of m ``texts`` after the first, which ``head`` reads from states ``[m, t - 1, h]``."""
    targets = texts.ids[:, 1:].flatten()[texts.words]
    return smoothed_cross_entropy(head(states.flatten(0, 1)[texts.words]), targets, smoothing)


def sample_mask(
    n: int, cells: int, least: float = 0.0, all_masked: float = 0.0, decisions: Decisions = PAPER
) -> Tensor:
    """Draw the cells to predict, bool ``[n, cells]``: per sample a ratio uniform in (``least``, 1], rounded up to
    whole cells, then that many cells at random (X-LXMERT 5.1, where ``least`` is 0). A share ``all_masked`` of the
    samples has all cells masked instead. With ``decisions.shared_masks`` all samples have the same cells, their number
    uniform from a tenth of the cells to all. Uses torch's global generator."""
    if decisions.shared_masks:
        count = int(torch.randint(max(1, cells // 10), cells + 1, ()))
        return (torch.randperm(cells) < count).expand(n, cells).clone()
    counts = ((least + (1 - least) * torch.rand(n, 1)) * cells).ceil().clamp(min=1)
    if all_masked:
        counts[torch.rand(n) < all_masked] = cells
    ranks = torch.rand(n, cells).argsort(1).argsort(1)
    return ranks < counts


def caption_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    images: list[Tensor],
    ids: Tensor | Texts,
    smoothing: float,
) -> Tensor:
    """Word-level loss (UMT equation 1) of several captions per image, which share one visual pass.

    Texts, here as in all losses, may have been cut and counted before (:class:`diptych.model.devices.Texts`): a GPU is then not
    waited for.

    Args:
        images: n of them (:func:`diptych.model.decoding.caption.encode_images`, by ``prefix`` attention).
        ids: int64 ``[n, c, t]``. Every token after ``[CLS]`` up to ``[SEP]`` is a target; padding is not.
    """
    texts = Texts.of(ids, tokenizer.pad).flat()
    states = model.caption_states(texts.ids[:, :-1], model.visual_keys_values(images))
    return word_loss(model.word_logits, states, texts, smoothing)


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
    images: list[Tensor],
    ids: Tensor | Texts,
    positions: Tensor,
    smoothing: float,
) -> Tensor:
    """Word-level loss (UMT equation 1) by the ``masked`` scheme: one word of each caption is hidden and predicted from
    the image and the words before it.

    Args:
        images: n of them (:func:`diptych.model.decoding.caption.encode_images`, by ``masked`` attention).
        ids: int64 ``[n, c, t]``, c captions per image; they share the visual layers that no word reaches. Texts are those of
            :func:`until`.
        positions: int64 ``[n, c]``, the word to predict (:func:`sample_positions`).
    """
    visual, ids = images[0], (ids if isinstance(ids, Texts) else until(tokenizer, ids, positions)).ids
    if ids.shape[1] > 1:
        visual = visual.repeat_interleave(ids.shape[1], 0)
    logits, targets = hidden_words(model, tokenizer, visual, ids.flatten(0, 1), positions.flatten())
    return smoothed_cross_entropy(logits, targets, smoothing)


def until(tokenizer: CaptionTokenizer, ids: Tensor, positions: Tensor) -> Texts:
    """Texts int64 ``[..., t]`` up to the last of the ``positions`` int64 ``[...]``: no word after them is seen."""
    return Texts.of(ids, tokenizer.pad, int(positions.max()) + 1)


def caption_and_answer_losses(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    ids: Tensor | Texts,
    positions: Tensor | None,
    smoothing: float,
    questions: Tensor | Texts | None,
    shares: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Losses of captions and of the answers to questions about the same images, which are seen once for both.

    Args:
        features: float ``[n, cells, D]`` of :func:`diptych.model.image_features.caption_input`.
        ids, positions: of :func:`masked_caption_loss` where the model captions by ``masked`` attention, otherwise ids of
            :func:`caption_loss` and None.
        questions, shares: of :func:`diptych.model.objectives.answers.answer_loss`; None: the second loss is 0.
    """
    images = encode_images(model, features)
    if positions is None:
        words = caption_loss(model, tokenizer, images, ids, smoothing)
    else:
        words = masked_caption_loss(model, tokenizer, images, ids, positions, smoothing)
    if questions is None or shares is None:
        return words, torch.zeros_like(words)
    return words, answer_loss(model, tokenizer, images, questions, shares)


def hidden_words(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, visual: Tensor, ids: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Hide one word of each of ids int64 ``[n, t]``, at ``positions`` int64 ``[n]``, and all that follow it; the last of the positions
    should be that of the last token.

    Returns:
        What ``masked`` captioning makes of the hidden word from the words before it and ``visual`` ``[n, v, h]``, logits
        ``[n, V]``; and the word, int64 ``[n]``.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    targets = ids.gather(1, positions[:, None])[:, 0]
    hidden = ids.scatter(1, positions[:, None], tokenizer.mask)
    return model.masked_caption_logits(hidden, places <= positions[:, None], visual, positions), targets


def paint_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    codes: Tensor,
    ids: Tensor | Texts,
    masked: Tensor | Places,
    smoothing: float,
    features: Tensor | None = None,
) -> Tensor:
    """Grid-level loss (UMT equation 3): codes int64 ``[n, cells]`` at ``masked`` (bool) from the other cells' codebook
    vectors, or from their ``features`` float ``[n, cells, D]``, and the text int64 ``[n, t]``."""
    ids, masked = Texts.of(ids, tokenizer.pad).ids, Places.of(masked)
    text, bias = model.encode_text(ids, ids != tokenizer.pad)
    visual = model.encode_visual(codebook[codes] if features is None else features, masked)
    logits = model.paint_logits(text, bias, visual, masked)
    return smoothed_cross_entropy(logits, masked.of_values(codes), smoothing)
