"""Losses of BiART (L-Verse 3.4): of what is generated and of the reference it follows, in either order."""

from __future__ import annotations

from torch import Tensor

from diptych.model.devices import Texts
from diptych.model.networks.biart import GENERATED, BiART
from diptych.model.objectives.near_codes import NearCodes
from diptych.model.objectives.token import smoothed_cross_entropy, word_loss
from diptych.model.tokenizer import CaptionTokenizer


def caption_losses(
    model: BiART,
    tokenizer: CaptionTokenizer,
    codes: Tensor,
    ids: Tensor | Texts,
    smoothing: float,
    reference: bool,
) -> tuple[Tensor, Tensor | None]:
    """Image to text: the loss of the words and, if wanted, that of the ``reference``'s codes.

    Args:
        codes: int64 ``[n, cells]``. The image is read once for all its captions.
        ids: int64 ``[n, c, t]`` of :meth:`CaptionTokenizer.encode`. Every token after ``[CLS]`` up to ``[SEP]`` is a target.

    Returns:
        Means over all words, and over all cells or None.
    """
    seen, image = model.read_image(codes)
    texts = Texts.of(ids, tokenizer.pad).flat()
    states = model.write(model.text_tokens(texts.ids[:, :-1], GENERATED), image)
    loss = word_loss(model.word_head, states, texts, smoothing)
    if not reference:
        return loss, None
    logits = model.code_head(seen[:, :-1]).flatten(0, 1)
    return loss, smoothed_cross_entropy(logits, codes.flatten(), smoothing)


def painting_losses(
    model: BiART,
    tokenizer: CaptionTokenizer,
    codes: Tensor,
    ids: Tensor | Texts,
    smoothing: float,
    reference: bool,
    hidden: Tensor | None = None,
    near: NearCodes | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Text to image: the loss of the codes and, if wanted, that of the ``reference``'s words.

    Args:
        codes: int64 ``[n, cells]``.
        ids: int64 ``[n, t]``, a text for each image, or "no text".
        hidden: bool ``[n, cells]``, codes that those after them do not see, but for their place.
        near: shares the targets with codes alike, in the place of ``smoothing`` of codes.

    Returns:
        Means over all cells, and over all words or None.
    """
    texts = Texts.of(ids, tokenizer.pad)
    read, text = model.read_text(texts.ids, texts.visible(tokenizer.pad))
    seen = codes if hidden is None else codes.masked_fill(hidden, model.config.codebook_size)
    states = model.write(model.image_tokens(seen[:, :-1], GENERATED), text)
    logits, wanted = model.code_head(states).flatten(0, 1), codes.flatten()
    loss = near.cross_entropy(logits, wanted) if near else smoothed_cross_entropy(logits, wanted, smoothing)
    if not reference:
        return loss, None
    return loss, word_loss(model.word_head, read[:, :-1], texts, smoothing)
