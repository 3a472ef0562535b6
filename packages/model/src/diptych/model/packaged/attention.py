"""Where in the picture the words of a caption or question look: the text's attention to the cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.networks.attention import causal_bias, padding_bias
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class WordAttention:
    """Attributes:
    words: of one caption or question, without special tokens; the pieces of a word are together.
    weights: float32 ``[words, cells]``, row-major from the top left; every row sums to 1.
    """

    words: tuple[str, ...]
    weights: Tensor


@torch.no_grad()
def piece_attention(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor
) -> Tensor:
    """Return the attention that wrote each word piece: float32 ``[n, t - 1, cells]``; row i belongs to ``ids[:, i + 1]``.

    It is that of the position which predicts the piece (by ``prefix`` attention the piece before it, by ``masked``
    attention the [MASK] in its place), mean over the heads of each layer in which text sees the image, then over the layers.

    Args:
        images: of :func:`diptych.model.decoding.caption.encode_images`, n of them.
        ids: int64 ``[n, t]``, one caption each, as :class:`diptych.model.decoding.caption.Captions` has them.

    The model should be in eval mode.
    """
    if model.config.caption_attention == "prefix":
        bias = causal_bias(ids.shape[1] - 1, ids.device)
        return model.prefix_attention(ids[:, :-1], bias, model.visual_keys_values(images))
    masks = ids.new_full((len(ids), 1), tokenizer.mask)
    steps = range(1, ids.shape[1])
    return torch.stack(
        [
            model.masked_attention(torch.cat([ids[:, :step], masks], 1), None, images[0])[:, -1]
            for step in steps
        ],
        1,
    )


@torch.no_grad()
def question_attention(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor
) -> list[WordAttention]:
    """Return where the words of n questions look, ids int64 ``[n, t]`` as
    :meth:`diptych.model.tokenizer.CaptionTokenizer.encode_questions` has them: of each word at its own place, mean over the
    heads of each layer in which text sees the image, then over the layers. A word's is the mean of its pieces'."""
    visible = ids != tokenizer.pad
    if model.config.caption_attention == "prefix":
        weights = model.prefix_attention(ids, padding_bias(visible), model.visual_keys_values(images))
    else:
        weights = model.masked_attention(ids, visible, images[0])
    counts = visible.sum(1) - 2  # without [CLS] and [SEP]
    return [
        grouped(tokenizer, row[1 : count + 1].tolist(), own[1 : count + 1])
        for row, own, count in zip(ids, weights.cpu(), counts.tolist(), strict=True)
    ]


def word_attention(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor
) -> list[WordAttention]:
    """Return where the words of n captions look (:func:`piece_attention`); a word's is the mean of its pieces'."""
    weights = piece_attention(model, tokenizer, images, ids).cpu()
    return [grouped(tokenizer, tokenizer.words(row), own) for row, own in zip(ids, weights, strict=True)]


def grouped(tokenizer: CaptionTokenizer, pieces: list[int], weights: Tensor) -> WordAttention:
    """The attention of words from that of their pieces, ``weights`` float32 ``[at least as many, cells]``."""
    words, parts, start = [], [], 0
    for word, count in tokenizer.group_pieces(pieces):
        words.append(word)
        parts.append(weights[start : start + count].mean(0))
        start += count
    together = torch.stack(parts) if parts else weights[:0]
    with torch.inference_mode(False):  # a tensor that may be changed outside
        return WordAttention(tuple(words), together.clone())
