"""UNITER's single stream: text and image are one sequence for every layer (Chen et al., ECCV 2020; X-UNITER of X-LXMERT 7.2).

What can be computed once is less than with two streams. Bidirectionally the image's states follow from the text from the first
layer on, so only its embedding, and the first layer's queries, keys and values of it, serve several texts and decoding steps. By
the ``prefix`` scheme the image sees no text in any layer, and all its keys and values are computed once.

Since positions are embedded, the order of a sequence changes nothing: padding stays between text and image and is hidden.

Letters in shape comments: n images or texts, c captions per image, t text positions, v grid cells (64), h hidden
size, D feature size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.devices import Places
from diptych.model.networks.attention import (
    Attention,
    KeyValueCache,
    attention_scores,
    causal_bias,
    padding_bias,
    share_of_cells,
)
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.embeddings import TypedVisualEmbedding, VisualEmbedding
from diptych.model.networks.layers import EncoderLayer
from diptych.model.networks.unified import UnifiedTransformer, at_positions


class SingleStream(UnifiedTransformer):
    """UNITER's transformer with a word head and a code head."""

    def build_visual_embedding(self, config: TransformerConfig) -> VisualEmbedding:
        return TypedVisualEmbedding(config)

    def build_layers(self, config: TransformerConfig) -> None:
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def parts_that_text_reads(self) -> Iterator[nn.Module]:
        yield self.layers

    # Bidirectional layout

    def encode_text(self, ids: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.text_embedding(ids), None if visible is None else padding_bias(visible)

    def forward(
        self, ids: Tensor, visible: Tensor | None, features: Tensor, masked: Tensor | Places | None = None
    ) -> tuple[Tensor, Tensor]:
        text, bias = self.encode_text(ids, visible)
        states, bias = joined(text, bias, self.encode_visual(features, masked))
        for layer in self.layers:
            states = layer(states, bias)
        return states[:, : ids.shape[1]], states[:, ids.shape[1] :]

    def visual_projection(self, visual: Tensor) -> tuple[Tensor, ...]:
        return self.layers[0].attention.project(visual)

    def before_last(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        visual_projection: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run all layers but the last, of which callers need some rows only: the sequence ``[n, t + v, h]``, and its bias."""
        states, bias = joined(text, text_bias, visual)
        for number, layer in enumerate(self.layers[:-1]):
            if number == 0 and visual_projection is not None:
                states = first_layer(layer, text, states, visual_projection, bias)
            else:
                states = layer(states, bias)
        return states, bias

    def last_layer(self, states: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        """The last layer's attention at ``rows`` ``[n, p, h]`` of the sequence ``states``: ``[n, p, h]``, before its feed-forward
        network."""
        attention = self.layers[-1].attention
        keys, values = attention.keys_values(states)
        return attention.attend(rows, attention.queries(rows), keys, values, bias)

    def visual_states(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor | Places,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        states, bias = self.before_last(text, text_bias, visual, visual_projection)
        rows = states[:, text.shape[1] :]
        if isinstance(positions, Places) or positions.dtype == torch.bool:
            # another number of cells in each row: chosen after the attention
            attended = self.last_layer(states, bias, rows)
            return self.layers[-1].feed_forward(at_positions(attended, positions))
        return self.layers[-1].feed_forward(self.last_layer(states, bias, at_positions(rows, positions)))

    def chosen_text_states(
        self, ids: Tensor, visible: Tensor | None, visual: Tensor, chosen: Tensor | Places
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        states, bias = self.before_last(text, bias, visual, None)
        attended = self.last_layer(states, bias, states[:, : ids.shape[1]])
        return self.layers[-1].feed_forward(at_positions(attended, chosen))

    # Masked layout

    def masked_text_states(
        self,
        ids: Tensor,
        visible: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        states, bias = self.before_last(text, bias, visual, visual_projection)
        attended = self.last_layer(states, bias, at_positions(states, positions[:, None]))
        return self.layers[-1].feed_forward(attended)[:, 0]

    # Prefix layout

    def encode_visual_prefix(self, features: Tensor) -> list[Tensor]:
        states = [self.encode_visual(features)]
        for layer in self.layers[:-1]:
            states.append(layer(states[-1]))
        return states

    def visual_keys_values(self, prefix: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [
            layer.attention.keys_values(states) for layer, states in zip(self.layers, prefix, strict=True)
        ]

    def caption_states(
        self,
        ids: Tensor,
        keys_values: list[tuple[Tensor, Tensor]],
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        bias = causal_bias(ids.shape[1], ids.device) if ids.shape[1] > 1 else None
        text = self.text_embedding(ids, caches[0].length if caches else 0)
        return beside(self.layers, text, bias, keys_values, caches)

    def question_states(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        text, last = beside(self.layers[:-1], text, bias, keys_values[:-1]), self.layers[-1]
        return last.feed_forward(last.attention.beside(text, keys_values[-1], bias, rows=text[:, :1]))[:, 0]

    def all_question_states(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        return beside(self.layers, text, bias, keys_values)

    def caption_caches(self, length: int) -> list[KeyValueCache]:
        return [KeyValueCache(length) for _ in self.layers]

    # Where the text looks

    def prefix_attention(
        self, ids: Tensor, text_bias: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        text = self.text_embedding(ids)
        total = torch.zeros((), device=ids.device)
        for layer, image in zip(self.layers, keys_values, strict=True):
            attention = layer.attention
            own = attention_scores(attention, text, attention.keys_values(text)[0])
            seen = attention_scores(attention, text, image[0])
            total = total + share_of_cells(seen, own if text_bias is None else own + text_bias)
            text = layer.feed_forward(attention.beside(text, image, text_bias))
        return total / len(self.layers)

    def masked_attention(self, ids: Tensor, visible: Tensor | None, visual: Tensor) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        states, bias = joined(text, bias, visual)
        t = ids.shape[1]
        total = torch.zeros((), device=ids.device)
        for layer in self.layers:
            scores = attention_scores(layer.attention, states[:, :t], layer.attention.keys_values(states)[0])
            scores = scores if bias is None else scores + bias
            total = total + share_of_cells(scores[..., t:], scores[..., :t])
            states = layer(states, bias)
        return total / len(self.layers)


def beside(
    layers: nn.ModuleList,
    text: Tensor,
    bias: Tensor | None,
    keys_values: Sequence[tuple[Tensor, Tensor]],
    caches: Sequence[KeyValueCache] | None = None,
) -> Tensor:
    """Run layers over texts ``[n * c, t, h]`` beside their images, of which each layer has its keys and values."""
    of_layers: Sequence[KeyValueCache | None] = caches or [None] * len(layers)
    for layer, image, cache in zip(layers, keys_values, of_layers, strict=True):
        text = layer.feed_forward(layer.attention.beside(text, image, bias, cache))
    return text


def joined(text: Tensor, text_bias: Tensor | None, visual: Tensor) -> tuple[Tensor, Tensor | None]:
    """The sequence ``[n, t + v, h]`` of text and image, and its bias, by which all see all cells."""
    bias = None if text_bias is None else F.pad(text_bias, (0, visual.shape[1]))
    return torch.cat([text, visual], 1), bias


def first_layer(
    layer: EncoderLayer,
    text: Tensor,
    states: Tensor,
    visual_projection: tuple[Tensor, ...],
    bias: Tensor | None,
) -> Tensor:
    """A layer over the sequence ``states`` ``[n, t + v, h]`` that starts with ``text`` and of whose image it is given queries,
    keys and values."""
    attention: Attention = layer.attention
    parts = zip(attention.project(text), visual_projection, strict=True)
    queries, keys, values = (torch.cat(pair, 2) for pair in parts)
    return layer.feed_forward(attention.attend(states, queries, keys, values, bias))
