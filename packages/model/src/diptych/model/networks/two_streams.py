"""The unified multimodal transformer: LXMERT's two streams with a word head and a code head (UMT 3.1).

Three layouts share one set of weights:

* painting is bidirectional LXMERT: both streams see each other, text padding is hidden
  (:meth:`UnifiedTransformer.forward`, :meth:`UnifiedTransformer.paint_logits`);
* captioning by the ``masked`` scheme is the papers': the words so far and a [MASK] at the position to predict see
  each other both ways, and the visual stream sees them, so that every word is a new forward pass
  (:meth:`UnifiedTransformer.masked_caption_logits`);
* captioning by the ``prefix`` scheme: text is causal and the visual stream never sees text, so the visual states of an
  image are computed once for all its captions and for all decoding steps
  (:meth:`UnifiedTransformer.encode_visual_prefix`, :meth:`UnifiedTransformer.caption_states`).

Questions and statements follow the scheme of the captions. By ``masked`` they are LXMERT's: both streams see each other.
By ``prefix`` all words of the question see each other and the image, and the image is seen once for all its questions
(:meth:`UnifiedTransformer.masked_text_states`, :meth:`UnifiedTransformer.question_states`).

Letters in shape comments: n images or texts, c captions per image, t text positions, v grid cells (64), h hidden
size, D feature size, K codes, V word pieces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.networks.attention import Attention, KeyValueCache, causal_bias, padding_bias
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.embeddings import TextEmbedding, VisualEmbedding
from diptych.model.networks.heads import AnswerHead, CodeHead, FeatureHead, HeadTransform, PairHead, Pooler
from diptych.model.networks.layers import EncoderLayer, FeedForward, initialise


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

    def text_chosen(self, text: Tensor, text_bias: Tensor | None, visual: Tensor, chosen: Tensor) -> Tensor:
        """The text half of :meth:`forward` at ``chosen`` (bool ``[n, t]``) positions: ``[m, h]``. It is all that predicting
        masked words needs of the last layer."""
        text = self.cross_attention.attend(
            text, self.cross_attention.queries(text), *self.cross_attention.keys_values(visual)
        )
        return self.text_feed_forward(self.text_attention(text, text_bias)[chosen])

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


class UnifiedTransformer(nn.Module):
    """One transformer for both directions (UMT 3.1): captions from grid features, codes from captions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_embedding = TextEmbedding(config)
        self.visual_embedding = VisualEmbedding(config)
        self.language_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.language_layers))
        self.visual_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.visual_layers))
        self.cross_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.cross_layers))
        self.word_transform = HeadTransform(config.hidden_size)
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.code_head = CodeHead(config)
        self.pooler = Pooler(config) if config.pooled else None
        self.answer_head = AnswerHead(config) if config.answers else None
        self.matching_head = nn.Linear(config.hidden_size, 2) if config.matching else None
        self.pair_head = PairHead(config) if config.pairs else None
        self.feature_head = FeatureHead(config) if config.regresses else None
        self.object_head = (
            nn.Linear(config.feature_dim, config.object_classes) if config.object_classes else None
        )
        initialise(self, config.initial_std)

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Take the statistics of the visual input, and the tied head's weights if any, from ``codebook`` (float
        ``[K, D]``): the mean vector, and one scale, the root mean square of the deviations from it.

        Sums are float64: in float32 they would depend on the number of threads, and a checkpoint would belong to it."""
        embedding = self.visual_embedding
        embedding.feature_mean.copy_(codebook.double().mean(0))
        deviations = codebook.to(embedding.feature_mean) - embedding.feature_mean
        embedding.feature_scale.copy_(deviations.double().square().mean().sqrt().clamp(min=1e-6))
        if self.code_head.tied:
            self.code_head.codes.weight.copy_(deviations / embedding.feature_scale)

    # Parts that both layouts use

    def encode_text(self, ids: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run embedding and language layers on ids int64 ``[n, t]`` with ``visible`` bool ``[n, t]`` (None: all).

        Returns states ``[n, t, h]`` and the attention bias of the text, the input of :meth:`paint_logits`.
        """
        bias = None if visible is None else padding_bias(visible)
        text = self.text_embedding(ids)
        for layer in self.language_layers:
            text = layer(text, bias)
        return text, bias

    def encode_visual(self, features: Tensor, masked: Tensor | None = None) -> Tensor:
        """Run embedding and visual layers on features float ``[n, v, D]``, masked where bool ``[n, v]``:
        ``[n, v, h]``.

        Raises:
            UserError: the features are of another grid or size; or, when no gradients are needed, not finite (training
                checks its loss instead) and this is no export, whose program cannot stop.
        """
        config = self.config
        if features.shape[1:] != (config.cells, config.feature_dim):
            raise UserError(
                f"grid features are [n, {config.cells}, {config.feature_dim}] for this transformer, these are "
                f"{list(features.shape)}; use features of the detector and grid that it was trained with"
            )
        checked = not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if checked and not torch.isfinite(features).all():
            rows = (~torch.isfinite(features).flatten(1).all(1)).nonzero()[:, 0].tolist()
            raise UserError(
                f"grid features are NaN or infinite in row {rows[0]} of the batch ({len(rows)} such rows); extract "
                "these images again"
            )
        visual = self.visual_embedding(features, masked)
        for layer in self.visual_layers:
            visual = layer(visual)
        return visual

    def word_logits(self, states: Tensor) -> Tensor:
        """Word head: ``[..., h]`` to float ``[..., V]``; its matrix is the word embedding."""
        return F.linear(self.word_transform(states), self.text_embedding.words.weight, self.word_bias)

    # Bidirectional layout: LXMERT, and painting

    def forward(
        self, ids: Tensor, visible: Tensor | None, features: Tensor, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """LXMERT: ids int64 and ``visible`` bool (None: all) ``[n, t]``, features ``[n, v, D]`` of which cells where
        ``masked`` (bool ``[n, v]``) hold the mask feature, to final states: text ``[n, t, h]``, visual ``[n, v, h]``."""
        text, bias = self.encode_text(ids, visible)
        visual = self.encode_visual(features, masked)
        for layer in self.cross_layers:
            text, visual = layer(text, bias, visual)
        return text, visual

    def visual_projection(self, visual: Tensor) -> tuple[Tensor, ...]:
        """Return what the first cross-modality layer makes of ``visual`` ``[n, v, h]`` whatever the text is: queries,
        keys and values, ``[n, heads, v, d]`` each."""
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

    def paint_logits(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Return logits over the codes at chosen cells only.

        Args:
            text, text_bias: from :meth:`encode_text`; the same for all decoding steps.
            visual: from :meth:`encode_visual`; the same with and without guidance.
            positions: either bool ``[n, v]`` (result ``[m, K]``, m cells in row-major order) or int64 ``[n, p]``
                (result ``[n, p, K]``).
            visual_projection: of ``visual`` (:meth:`visual_projection`), where the caller has it already.
        """
        return self.code_head(self.visual_states(text, text_bias, visual, positions, visual_projection))

    def visual_states(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Return the final states of chosen cells, ``[m, h]`` or ``[n, p, h]``; arguments as of :meth:`paint_logits`."""
        text, visual, visual_projection = self.before_last(text, text_bias, visual, visual_projection)
        last = self.cross_layers[-1]
        states = last.visual_attentions(text, text_bias, visual, visual_projection)
        if positions.dtype == torch.bool:
            states = states[positions]
        else:
            states = states[torch.arange(states.shape[0], device=states.device)[:, None], positions]
        return last.visual_feed_forward(states)

    def masked_word_logits(
        self, ids: Tensor, visible: Tensor | None, visual: Tensor, chosen: Tensor
    ) -> Tensor:
        """Return logits ``[m, V]`` of the words at ``chosen`` (bool ``[n, t]``) positions, m of them in row-major order;
        the rest as of :meth:`masked_caption_logits`."""
        text, bias = self.encode_text(ids, visible)
        text, visual, _ = self.before_last(text, bias, visual)
        return self.word_logits(self.cross_layers[-1].text_chosen(text, bias, visual, chosen))

    # Masked layout: captioning as in the papers

    def masked_caption_logits(
        self,
        ids: Tensor,
        visible: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Return the logits float ``[n, V]`` of one word of each caption (X-LXMERT's masked language model; UMT 4.1.1).

        Args:
            ids: int64 ``[n, t]`` with [MASK] at ``positions``.
            visible: bool ``[n, t]``, the words that may be seen: by both streams. None: all; so a decoder that writes
                the same position of all captions passes the ids up to it and no mask.
            visual: from :meth:`encode_visual`, ``[n, v, h]``; without dropout the same for all words of a caption.
            positions: int64 ``[n]``.
            visual_projection: of ``visual`` (:meth:`visual_projection`), where the caller has it already.
        """
        return self.word_logits(self.masked_text_states(ids, visible, visual, positions, visual_projection))

    def masked_text_states(
        self,
        ids: Tensor,
        visible: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Return the state float ``[n, h]`` of one position of each text, where both streams see each other; arguments as
        of :meth:`masked_caption_logits`. Position 0, that of [CLS], stands for the whole text with its image."""
        text, bias = self.encode_text(ids, visible)
        text, visual, visual_projection = self.before_last(text, bias, visual, visual_projection)
        return self.cross_layers[-1].text_at(text, bias, visual, positions, visual_projection)

    # Prefix layout: captioning

    def encode_visual_prefix(self, features: Tensor) -> list[Tensor]:
        """Return the visual input ``[n, v, h]`` of each cross-modality layer when the visual stream sees no text.

        The last layer's own visual part is not computed: no caption reads it.
        """
        states = [self.encode_visual(features)]
        for layer in self.cross_layers[:-1]:
            states.append(layer.visual_alone(states[-1]))
        return states

    def visual_keys_values(self, prefix: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Project a prefix to the keys and values that text reads: one pair of ``[n, heads, v, d]`` per layer."""
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
        """Run causal text ``ids`` int64 ``[n * c, t]``, c captions for each of n images, to states
        ``[n * c, t, h]``; the state at a position predicts the next word.

        With ``caches`` (:meth:`caption_caches`) ``ids`` is the one word that follows those already cached
        (``[n, 1]``).
        """
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
        """Run questions ``ids`` int64 ``[n * c, t]``, c for each of n images, ``visible`` bool of the same shape (None:
        all), to the state of [CLS] ``[n * c, h]``. Their words see each other both ways and the image, which sees none
        of them."""
        text, bias = self.encode_text(ids, visible)
        *layers, last = zip(self.cross_layers, keys_values, strict=True)
        for layer, pair in layers:
            text = layer.text_from_visual(text, bias, pair)
        return last[0].first_from_visual(text, bias, last[1])

    def question_word_logits(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]], chosen: Tensor
    ) -> Tensor:
        """Return logits ``[m, V]`` of the words at ``chosen`` (bool ``[n * c, t]``) positions, m of them in row-major order;
        the rest as of :meth:`question_states`."""
        text, bias = self.encode_text(ids, visible)
        for layer, pair in zip(self.cross_layers, keys_values, strict=True):
            text = layer.text_from_visual(text, bias, pair)
        return self.word_logits(text[chosen])

    def caption_caches(self, length: int) -> list[KeyValueCache]:
        """Return empty caches for captions of up to ``length`` tokens."""
        return [KeyValueCache(length) for _ in range(len(self.language_layers) + len(self.cross_layers))]

    def caption_logits(self, ids: Tensor, prefix: list[Tensor]) -> Tensor:
        """Teacher-forced logits ``[n, t, V]`` of the words that follow each position of ``ids`` int64 ``[n, t]``."""
        return self.word_logits(self.caption_states(ids, self.visual_keys_values(prefix)))

    # What reads a whole text

    def answer_logits(self, states: Tensor) -> Tensor:
        """Return logits ``[..., A]`` over the answer table of states of [CLS] ``[..., h]``.

        Raises:
            UserError: the transformer has no answer head.
        """
        return self._pooled(
            self.answer_head, "answer head: it was trained without questions; train it with some", states
        )

    def matching_logits(self, states: Tensor) -> Tensor:
        """Return logits ``[..., 2]`` of (another picture's text, this picture's text) of states of [CLS] ``[..., h]``.

        Raises:
            UserError: the transformer has no matching head.
        """
        lacking = "matching head: it was not pretrained to match texts and pictures"
        return self._pooled(self.matching_head, lacking, states)

    def pair_logits(self, left: Tensor, right: Tensor) -> Tensor:
        """Return logits ``[..., 2]`` of (false, true) of the states of [CLS] ``[..., h]`` of a statement with its left and
        with its right picture.

        Raises:
            UserError: the transformer has no head for pairs.
        """
        lacking = "head for pairs of pictures: it was not fine-tuned on statements"
        return self._pooled(self.pair_head, lacking, left, right)

    def _pooled(self, head: nn.Module | None, lacking: str, *states: Tensor) -> Tensor:
        """What ``head`` makes of pooled states side by side; ``lacking`` names it and why there may be none."""
        if self.pooler is None or head is None:
            raise UserError(f"this transformer has no {lacking}")
        pooled = [self.pooler(state) for state in states]
        return head(torch.cat(pooled, -1) if len(pooled) > 1 else pooled[0])
