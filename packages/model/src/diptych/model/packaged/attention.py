"""Where in the picture a caption's words look: the text's cross-attention to the visual stream."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.networks.attention import Attention, causal_bias
from diptych.model.networks.two_streams import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class WordAttention:
    """Attributes:
    words: of one caption, without special tokens; the pieces of a word are together.
    weights: float32 ``[words, cells]``, row-major from the top left; every row sums to 1.
    """

    words: tuple[str, ...]
    weights: Tensor


def attention_weights(attention: Attention, states: Tensor, keys: Tensor) -> Tensor:
    """Return what ``states`` ``[n, t, h]`` attend to, mean over heads: float32 ``[n, t, k]``; ``keys``
    ``[n, heads, k, d]``."""
    queries = attention.queries(states)
    scores = queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return scores.softmax(-1).mean(1)


@torch.no_grad()
def piece_attention(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor
) -> Tensor:
    """Return the attention that wrote each word piece: float32 ``[n, t - 1, cells]``; row i belongs to ``ids[:, i + 1]``.

    It is that of the position which predicts the piece (by ``prefix`` attention the piece before it, by ``masked``
    attention the [MASK] in its place), mean over the heads of each cross-modality layer, then over the layers.

    Args:
        images: of :func:`diptych.model.decoding.caption.encode_images`, n of them.
        ids: int64 ``[n, t]``, one caption each, as :class:`diptych.model.decoding.caption.Captions` has them.

    The model should be in eval mode.
    """
    if model.config.caption_attention == "prefix":
        return prefix_attention(model, images, ids[:, :-1])
    steps = range(1, ids.shape[1])
    return torch.stack(
        [masked_attention(model, images[0], ids[:, :step], tokenizer.mask) for step in steps], 1
    )


def prefix_attention(model: UnifiedTransformer, images: list[Tensor], ids: Tensor) -> Tensor:
    """One causal pass over ``ids`` ``[n, t]``: float32 ``[n, t, cells]``."""
    bias = causal_bias(ids.shape[1], ids.device)
    text = model.text_embedding(ids)
    for layer in model.language_layers:
        text = layer(text, bias)
    total = torch.zeros((), device=ids.device)
    for layer, pair in zip(model.cross_layers, model.visual_keys_values(images), strict=True):
        total = total + attention_weights(layer.cross_attention, text, pair[0])
        text = layer.text_from_visual(text, bias, pair)
    return total / len(model.cross_layers)


def masked_attention(model: UnifiedTransformer, visual: Tensor, ids: Tensor, mask: int) -> Tensor:
    """The pass that predicts the piece after ``ids`` ``[n, t]``: float32 ``[n, cells]``."""
    text, bias = model.encode_text(torch.cat([ids, ids.new_full((len(ids), 1), mask)], 1), None)
    total = torch.zeros((), device=ids.device)
    for layer in model.cross_layers:
        keys = layer.cross_attention.keys_values(visual)[0]
        total = total + attention_weights(layer.cross_attention, text[:, -1:], keys)[:, 0]
        text, visual = layer(text, bias, visual)
    return total / len(model.cross_layers)


def word_attention(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor
) -> list[WordAttention]:
    """Return where the words of n captions look (:func:`piece_attention`); a word's is the mean of its pieces'."""
    weights = piece_attention(model, tokenizer, images, ids).cpu()
    found = []
    for row, own in zip(ids, weights, strict=True):
        pieces = tokenizer.words(row)
        groups = tokenizer.group_pieces(pieces)
        words, start = [], 0
        for word, count in groups:
            words.append((word, own[start : start + count].mean(0)))
            start += count
        found.append(
            WordAttention(
                tuple(word for word, _ in words),
                torch.stack([part for _, part in words]) if words else own[:0],
            )
        )
    return found
