"""LXMERT's two streams (UMT 3.1): layers for the text, layers for the image, and layers in which they see each other.

Letters in shape comments: n images or texts, c captions per image, t text positions, v grid cells (64), h hidden
size, D feature size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diptych.model.devices import Places
from diptych.model.networks.attention import (
    Attention,
    KeyValueCache,
    attention_weights,
    causal_bias,
    padding_bias,
)
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.embeddings import VisualEmbedding
from diptych.model.networks.layers import EncoderLayer, FeedForward
from diptych.model.networks.unified import UnifiedTransformer, at_positions


class CrossLayer(nn.Module):
    """One cross-modality layer: cross-attention, with the same weights in both directions, then self-attention and
    feed-forward network of each stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cross_attention = Attention(config)
        self.text_attention = Attention(config)
        self.visual_attention = Attention(config)
        self.text_feed_forward = FeedForward(config)
        self.visual_feed_forward = FeedForward(config)

    def forward(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both streams see each other: text ``[n, t, h]`` and visual ``[n, v, h]`` to the same shapes.

        ``visual_projection`` is ``cross_attention.project(visual)``, where the caller has it already.
        """
        cross = self.cross_attention
        text_queries, text_keys, text_values = cross.project(text)
        visual_queries, visual_keys, visual_values = visual_projection or cross.project(visual)
        text = cross.attend(text, text_queries, visual_keys, visual_values)
        visual = cross.attend(visual, visual_queries, text_keys, text_values, text_bias)
        return self.text_feed_forward(self.text_attention(text, text_bias)), self.visual_alone(visual)

    def visual_attentions(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """The visual half of :meth:`forward` without its feed-forward network, for the last layer of painting:
        nobody reads its text output, and the network is needed at a few cells only."""
        cross = self.cross_attention
        keys, values = cross.keys_values(text)
        queries = visual_projection[0] if visual_projection else cross.queries(visual)
        return self.visual_attention(cross.attend(visual, queries, keys, values, text_bias))

    def text_at(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """The text half of :meth:`forward` at one position of each text (int64 ``[n]``): ``[n, h]``. It is all that
        the last layer of ``masked`` captioning needs."""
        cross, own = self.cross_attention, self.text_attention
        visual_keys_values = visual_projection[1:] if visual_projection else cross.keys_values(visual)
        text = cross.attend(text, cross.queries(text), *visual_keys_values)
        keys, values = own.keys_values(text)
        rows = text[torch.arange(text.shape[0], device=text.device), positions, None]
        return self.text_feed_forward(own.attend(rows, own.queries(rows), keys, values, text_bias))[:, 0]

    def text_chosen(
        self, text: Tensor, text_bias: Tensor | None, visual: Tensor, chosen: Tensor | Places
    ) -> Tensor:
        """The text half of :meth:`forward` at ``chosen`` (bool ``[n, t]``) positions: ``[m, h]``. It is all that predicting
        masked words needs of the last layer."""
        text = self.cross_attention.attend(
            text, self.cross_attention.queries(text), *self.cross_attention.keys_values(visual)
        )
        return self.text_feed_forward(at_positions(self.text_attention(text, text_bias), chosen))

    def visual_alone(self, visual: Tensor) -> Tensor:
        """The visual stream of ``prefix`` captioning, which skips the cross-attention."""
        return self.visual_feed_forward(self.visual_attention(visual))

    def text_from_visual(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual_keys_values: tuple[Tensor, Tensor],
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The text stream of ``prefix`` captioning: text ``[n * c, t, h]``, keys and values of n images.

        The captions of one image lie side by side as queries, so its keys and values exist once.
        """
        text = self.look(text, visual_keys_values)
        return self.text_feed_forward(self.text_attention(text, text_bias, cache))

    def first_from_visual(
        self, text: Tensor, text_bias: Tensor | None, visual_keys_values: tuple[Tensor, Tensor]
    ) -> Tensor:
        """:meth:`text_from_visual` at the first position of each text: ``[n * c, h]``."""
        own, text = self.text_attention, self.look(text, visual_keys_values)
        first = text[:, :1]
        attended = own.attend(first, own.queries(first), *own.keys_values(text), text_bias)
        return self.text_feed_forward(attended)[:, 0]

    def look(self, text: Tensor, visual_keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-attention of texts ``[n * c, t, h]`` to n images."""
        keys, values = visual_keys_values
        side_by_side = text.view(keys.shape[0], -1, text.shape[-1])
        queries = self.cross_attention.queries(side_by_side)
        return self.cross_attention.attend(side_by_side, queries, keys, values).view(text.shape)


class TwoStreams(UnifiedTransformer):
    """LXMERT's transformer with a word head and a code head. Text sees the image in the cross-modality layers alone."""

    def build_visual_embedding(self, config: TransformerConfig) -> VisualEmbedding:
        return VisualEmbedding(config)

    def build_layers(self, config: TransformerConfig) -> None:
        self.language_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.language_layers))
        self.visual_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.visual_layers))
        self.cross_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.cross_layers))

    def parts_that_text_reads(self) -> Iterator[nn.Module]:
        yield self.language_layers
        for layer in self.cross_layers:
            yield from (layer.cross_attention, layer.text_attention, layer.text_feed_forward)

    # Bidirectional layout

    def encode_text(self, ids: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        bias = None if visible is None else padding_bias(visible)
        text = self.text_embedding(ids)
        for layer in self.language_layers:
            text = layer(text, bias)
        return text, bias

    def encode_visual(self, features: Tensor, masked: Tensor | Places | None = None) -> Tensor:
        visual = super().encode_visual(features, masked)
        for layer in self.visual_layers:
            visual = layer(visual)
        return visual

    def forward(
        self, ids: Tensor, visible: Tensor | None, features: Tensor, masked: Tensor | Places | None = None
    ) -> tuple[Tensor, Tensor]:
        text, bias = self.encode_text(ids, visible)
        visual = self.encode_visual(features, masked)
        for layer in self.cross_layers:
            text, visual = layer(text, bias, visual)
        return text, visual

    def visual_projection(self, visual: Tensor) -> tuple[Tensor, ...]:
        return self.cross_layers[0].cross_attention.project(visual)

    def before_last(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """Run all cross-modality layers but the last, of which callers need a part only: text ``[n, t, h]``, visual
        ``[n, v, h]``, and the projection of ``visual`` if it is still the one given (:meth:`visual_projection`)."""
        *layers, _ = self.cross_layers
        for layer in layers:
            text, visual = layer(text, text_bias, visual, visual_projection)
            visual_projection = None
        return text, visual, visual_projection

    def visual_states(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor | Places,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        text, visual, visual_projection = self.before_last(text, text_bias, visual, visual_projection)
        last = self.cross_layers[-1]
        states = last.visual_attentions(text, text_bias, visual, visual_projection)
        return last.visual_feed_forward(at_positions(states, positions))

    def chosen_text_states(
        self, ids: Tensor, visible: Tensor | None, visual: Tensor, chosen: Tensor | Places
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        text, visual, _ = self.before_last(text, bias, visual)
        return self.cross_layers[-1].text_chosen(text, bias, visual, chosen)

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
        text, visual, visual_projection = self.before_last(text, bias, visual, visual_projection)
        return self.cross_layers[-1].text_at(text, bias, visual, positions, visual_projection)

    # Prefix layout

    def encode_visual_prefix(self, features: Tensor) -> list[Tensor]:
        states = [self.encode_visual(features)]
        for layer in self.cross_layers[:-1]:
            states.append(layer.visual_alone(states[-1]))
        return states

    def visual_keys_values(self, prefix: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [
            layer.cross_attention.keys_values(states)
            for layer, states in zip(self.cross_layers, prefix, strict=True)
        ]

    def caption_states(
        self,
        ids: Tensor,
        keys_values: list[tuple[Tensor, Tensor]],
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        start = caches[0].length if caches else 0
        bias = causal_bias(ids.shape[1], ids.device) if ids.shape[1] > 1 else None
        layer_caches = iter(caches) if caches else None
        text = self.text_embedding(ids, start)
        for layer in self.language_layers:
            text = layer(text, bias, next(layer_caches) if layer_caches else None)
        for layer, pair in zip(self.cross_layers, keys_values, strict=True):
            text = layer.text_from_visual(text, bias, pair, next(layer_caches) if layer_caches else None)
        return text

    def question_states(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        *layers, last = zip(self.cross_layers, keys_values, strict=True)
        for layer, pair in layers:
            text = layer.text_from_visual(text, bias, pair)
        return last[0].first_from_visual(text, bias, last[1])

    def all_question_states(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        for layer, pair in zip(self.cross_layers, keys_values, strict=True):
            text = layer.text_from_visual(text, bias, pair)
        return text

    def caption_caches(self, length: int) -> list[KeyValueCache]:
        return [KeyValueCache(length) for _ in range(len(self.language_layers) + len(self.cross_layers))]

    # Where the text looks

    def prefix_attention(
        self, ids: Tensor, text_bias: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        text = self.text_embedding(ids)
        for layer in self.language_layers:
            text = layer(text, text_bias)
        total = torch.zeros((), device=ids.device)
        for layer, pair in zip(self.cross_layers, keys_values, strict=True):
            total = total + attention_weights(layer.cross_attention, text, pair[0])
            text = layer.text_from_visual(text, text_bias, pair)
        return total / len(self.cross_layers)

    def masked_attention(self, ids: Tensor, visible: Tensor | None, visual: Tensor) -> Tensor:
        text, bias = self.encode_text(ids, visible)
        total = torch.zeros((), device=ids.device)
        for layer in self.cross_layers:
            keys = layer.cross_attention.keys_values(visual)[0]
            total = total + attention_weights(layer.cross_attention, text, keys)
            text, visual = layer(text, bias, visual)
        return total / len(self.cross_layers)
