"""The unified multimodal transformer (UMT 3.1), whatever its architecture: embeddings, heads, and what others call.

:class:`UnifiedTransformer` is what objectives, decoders and the packaged model know. Between embeddings and heads stands one of
two stacks of layers: LXMERT's two streams (:mod:`diptych.model.networks.two_streams`) or UNITER's single stream
(:mod:`diptych.model.networks.single_stream`). Three layouts share one set of weights:

* painting is bidirectional: text and image see each other, text padding is hidden
  (:meth:`UnifiedTransformer.forward`, :meth:`UnifiedTransformer.paint_logits`);
* captioning by the ``masked`` scheme is the papers': the words so far and a [MASK] at the position to predict see
  each other both ways, and the image sees them, so that every word is a new forward pass
  (:meth:`UnifiedTransformer.masked_caption_logits`);
* captioning by the ``prefix`` scheme: text is causal and the image never sees text, so the states of an image are computed
  once for all its captions and for all decoding steps
  (:meth:`UnifiedTransformer.encode_visual_prefix`, :meth:`UnifiedTransformer.caption_states`).

Questions and statements follow the scheme of the captions. By ``masked`` they are LXMERT's and UNITER's: text and image see each
other. By ``prefix`` all words of the question see each other and the image, and the image is seen once for all its questions
(:meth:`UnifiedTransformer.masked_text_states`, :meth:`UnifiedTransformer.question_states`).

Letters in shape comments: n images or texts, c captions per image, t text positions, v grid cells (64), h hidden
size, D feature size, K codes, V word pieces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.devices import Places
from diptych.model.errors import UserError
from diptych.model.networks.attention import KeyValueCache
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.embeddings import TextEmbedding, VisualEmbedding
from diptych.model.networks.heads import AnswerHead, CodeHead, FeatureHead, HeadTransform, PairHead, Pooler
from diptych.model.networks.layers import initialise


class UnifiedTransformer(nn.Module, ABC):
    """One transformer for both directions (UMT 3.1): captions from grid features, codes from captions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_embedding = TextEmbedding(config)
        self.visual_embedding = self.build_visual_embedding(config)
        self.build_layers(config)
        self.word_transform = HeadTransform(config.hidden_size)
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
        # a frozen copy's product with the word embedding (diptych.model.inference)
        self.word_projection: nn.Module | None = None
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

    # What an architecture is

    @abstractmethod
    def build_visual_embedding(self, config: TransformerConfig) -> VisualEmbedding:
        """Return what turns grid features into states."""

    @abstractmethod
    def build_layers(self, config: TransformerConfig) -> None:
        """Set the layers between embeddings and heads."""

    @abstractmethod
    def parts_that_text_reads(self) -> Iterator[nn.Module]:
        """Yield the layers' modules whose matrices multiply the few rows of a text (:mod:`diptych.model.inference`)."""

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

    # Bidirectional layout: LXMERT and UNITER, and painting

    @abstractmethod
    def encode_text(self, ids: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run what sees text alone on ids int64 ``[n, t]`` with ``visible`` bool ``[n, t]`` (None: all).

        Returns states ``[n, t, h]`` and the attention bias of the text, the input of :meth:`paint_logits`.
        """

    def encode_visual(self, features: Tensor, masked: Tensor | Places | None = None) -> Tensor:
        """Run what sees the image alone on features float ``[n, v, D]``, masked where bool ``[n, v]``: ``[n, v, h]``. A mask, here as
        everywhere, may have been counted before (:class:`diptych.model.devices.Places`): a GPU is then not waited for.

        Raises:
            UserError: the features are of another grid or size; or not finite, where none is masked (painting shows vectors of the
                codebook), no gradients are needed (training checks its loss instead) and this is no export, whose program cannot
                stop.
        """
        config = self.config
        if features.shape[1:] != (config.cells, config.feature_dim):
            raise UserError(
                f"grid features are [n, {config.cells}, {config.feature_dim}] for this transformer, these are "
                f"{list(features.shape)}; use features of the detector and grid that it was trained with"
            )
        checked = masked is None and not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if checked and not torch.isfinite(features).all():
            rows = (~torch.isfinite(features).flatten(1).all(1)).nonzero()[:, 0].tolist()
            raise UserError(
                f"grid features are NaN or infinite in row {rows[0]} of the batch ({len(rows)} such rows); extract "
                "these images again"
            )
        return self.visual_embedding(features, masked, self.text_embedding.token_types.weight[1])

    @abstractmethod
    def forward(
        self, ids: Tensor, visible: Tensor | None, features: Tensor, masked: Tensor | Places | None = None
    ) -> tuple[Tensor, Tensor]:
        """ids int64 and ``visible`` bool (None: all) ``[n, t]``, features ``[n, v, D]`` of which cells where ``masked``
        (bool ``[n, v]``) hold the mask feature, to final states: text ``[n, t, h]``, visual ``[n, v, h]``."""

    @abstractmethod
    def visual_projection(self, visual: Tensor) -> tuple[Tensor, ...]:
        """Return what the first layer that sees text and image makes of ``visual`` ``[n, v, h]`` whatever the text is:
        queries, keys and values, ``[n, heads, v, d]`` each."""

    def paint_logits(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor | Places,
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

    @abstractmethod
    def visual_states(
        self,
        text: Tensor,
        text_bias: Tensor | None,
        visual: Tensor,
        positions: Tensor | Places,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Return the final states of chosen cells, ``[m, h]`` or ``[n, p, h]``; arguments as of :meth:`paint_logits`."""

    def masked_word_logits(
        self, ids: Tensor, visible: Tensor | None, visual: Tensor, chosen: Tensor | Places
    ) -> Tensor:
        """Return logits ``[m, V]`` of the words at ``chosen`` (bool ``[n, t]``) positions, m of them in row-major order;
        the rest as of :meth:`masked_caption_logits`."""
        return self.word_logits(self.chosen_text_states(ids, visible, visual, chosen))

    @abstractmethod
    def chosen_text_states(
        self, ids: Tensor, visible: Tensor | None, visual: Tensor, chosen: Tensor | Places
    ) -> Tensor:
        """Return the final states ``[m, h]`` of the words of :meth:`masked_word_logits`."""

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
            visible: bool ``[n, t]``, the words that may be seen, by words and cells. None: all; so a decoder that writes
                the same position of all captions passes the ids up to it and no mask.
            visual: from :meth:`encode_visual`, ``[n, v, h]``; without dropout the same for all words of a caption.
            positions: int64 ``[n]``.
            visual_projection: of ``visual`` (:meth:`visual_projection`), where the caller has it already.
        """
        return self.word_logits(self.masked_text_states(ids, visible, visual, positions, visual_projection))

    @abstractmethod
    def masked_text_states(
        self,
        ids: Tensor,
        visible: Tensor | None,
        visual: Tensor,
        positions: Tensor,
        visual_projection: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Return the state float ``[n, h]`` of one position of each text, where text and image see each other; arguments as
        of :meth:`masked_caption_logits`. Position 0, that of [CLS], stands for the whole text with its image."""

    # Prefix layout: captioning

    @abstractmethod
    def encode_visual_prefix(self, features: Tensor) -> list[Tensor]:
        """Return the image's input ``[n, v, h]`` of each layer in which text sees it, when it sees no text.

        The last layer's own visual part is not computed: no caption reads it.
        """

    @abstractmethod
    def visual_keys_values(self, prefix: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Project a prefix to the keys and values that text reads: one pair of ``[n, heads, v, d]`` per layer."""

    @abstractmethod
    def caption_states(
        self,
        ids: Tensor,
        keys_values: list[tuple[Tensor, Tensor]],
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Run causal text ``ids`` int64 ``[n * c, t]``, c captions for each of n images, to states
        ``[n * c, t, h]``; the state at a position predicts the next word.

        With ``caches`` (:meth:`caption_caches`) ``ids`` are the words that follow those already cached; one of each
        caption, unless the caches are empty.
        """

    @abstractmethod
    def question_states(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Run questions ``ids`` int64 ``[n * c, t]``, c for each of n images, ``visible`` bool of the same shape (None:
        all), to the state of [CLS] ``[n * c, h]``. Their words see each other both ways and the image, which sees none
        of them."""

    def question_word_logits(
        self,
        ids: Tensor,
        visible: Tensor | None,
        keys_values: list[tuple[Tensor, Tensor]],
        chosen: Tensor | Places,
    ) -> Tensor:
        """Return logits ``[m, V]`` of the words at ``chosen`` (bool ``[n * c, t]``) positions, m of them in row-major order;
        the rest as of :meth:`question_states`."""
        return self.word_logits(at_positions(self.all_question_states(ids, visible, keys_values), chosen))

    @abstractmethod
    def all_question_states(
        self, ids: Tensor, visible: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return the states ``[n * c, t, h]`` of all words of :meth:`question_states`."""

    @abstractmethod
    def caption_caches(self, length: int) -> list[KeyValueCache]:
        """Return empty caches for captions of up to ``length`` tokens."""

    def caption_logits(self, ids: Tensor, prefix: list[Tensor]) -> Tensor:
        """Teacher-forced logits ``[n, t, V]`` of the words that follow each position of ``ids`` int64 ``[n, t]``."""
        return self.word_logits(self.caption_states(ids, self.visual_keys_values(prefix)))

    # Where the text looks

    @abstractmethod
    def prefix_attention(
        self, ids: Tensor, text_bias: Tensor | None, keys_values: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return what text ids int64 ``[n, t]``, of which ``text_bias`` hides some from others, attends to of the image by the
        ``prefix`` scheme: float32 ``[n, t, v]``, mean over the heads of each layer in which text sees the image, then over
        the layers; every row sums to 1. In a single stream a word attends to words and cells at once: these are the shares of
        what it gives to the cells."""

    @abstractmethod
    def masked_attention(self, ids: Tensor, visible: Tensor | None, visual: Tensor) -> Tensor:
        """Return the same by the ``masked`` scheme, ``visible`` bool ``[n, t]`` (None: all), ``visual`` from
        :meth:`encode_visual`."""

    # Heads

    def word_logits(self, states: Tensor) -> Tensor:
        """Word head: ``[..., h]`` to float ``[..., V]``; its matrix is the word embedding."""
        states = self.word_transform(states)
        if self.word_projection is not None:
            return self.word_projection(states)
        return F.linear(states, self.text_embedding.words.weight, self.word_bias)

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


def at_positions(states: Tensor, positions: Tensor | Places) -> Tensor:
    """Return ``states`` ``[n, v, h]`` at ``positions``, bool ``[n, v]`` or int64 ``[n, p]``: ``[m, h]`` or ``[n, p, h]``."""
    if isinstance(positions, Places):
        return positions.of_values(states)
    if positions.dtype == torch.bool:
        return states[positions]
    return states[torch.arange(states.shape[0], device=states.device)[:, None], positions]
