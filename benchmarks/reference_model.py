"""The reference side: Hugging Face's LXMERT used as the released code of the papers uses it.

Eager modules; both heads on all positions of both streams, whatever is read of them; text padded to one length; no
cache: every decoding step and every training step is one full forward pass. Written from the behaviour of generate-it
(https://github.com/researchmm/generate-it), whose state-dict names it has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LxmertConfig
from transformers.models.lxmert import modeling_lxmert as lxmert

from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.embeddings import grid_boxes


class CodePredictions(nn.Module):
    def __init__(self, config: LxmertConfig, codes: int) -> None:
        super().__init__()
        self.transform = lxmert.LxmertPredictionHeadTransform(config)
        self.linear_feat = nn.Linear(config.hidden_size, config.visual_feat_dim)
        self.out_cluster = nn.Linear(config.visual_feat_dim, codes)

    def forward(self, states: Tensor) -> Tensor:
        return self.out_cluster(self.linear_feat(self.transform(states)))


class ReferenceModel(nn.Module):
    """Random weights of standard deviation ``std``; the codebook ``[K, D]`` is frozen."""

    def __init__(self, config: TransformerConfig, codebook: Tensor, std: float = 0.02) -> None:
        super().__init__()
        hugging_face = LxmertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_attention_heads=config.attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.text_positions,
            l_layers=config.language_layers,
            r_layers=config.visual_layers,
            x_layers=config.cross_layers,
            visual_feat_dim=config.feature_dim,
        )
        self.embedding_layer = lxmert.LxmertEmbeddings(hugging_face)
        self.encoder = lxmert.LxmertEncoder(hugging_face)
        self.pooler = lxmert.LxmertPooler(hugging_face)
        self.classifier = lxmert.LxmertPreTrainingHeads(hugging_face)
        self.img_classifier = CodePredictions(hugging_face, config.codebook_size)
        self.mask_feat = nn.Parameter(torch.zeros(config.feature_dim))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=std)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
        self.classifier.predictions.decoder.weight = self.embedding_layer.word_embeddings.weight
        self.cluster_codebook = nn.Embedding.from_pretrained(codebook, freeze=True)
        self.cells = config.cells
        self.register_buffer("visual_pos", grid_boxes(config.grid_size), persistent=False)

    def forward(
        self,
        features: Tensor,
        ids: Tensor,
        visible: Tensor,
        masked: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features ``[n, v, D]`` with cells bool ``[n, v]`` to hide, ids ``[n, t]`` of which ``visible`` (bool) may be
        seen: word logits ``[n, v + t, V]`` and code logits ``[n, v + t, K]``, cells first."""
        if masked is not None:
            features = torch.where(masked[..., None], self.mask_feat, features)
        bias = (1.0 - visible[:, None, None, :].to(features.dtype)) * -10000.0
        (visual_states, _), (text_states, _), _ = self.encoder(
            self.embedding_layer(ids, torch.zeros_like(ids)),
            bias,
            visual_feats=features,
            visual_pos=self.visual_pos.expand(len(ids), -1, -1),
            visual_attention_mask=None,
        )
        states = torch.cat([visual_states[-1], text_states[-1]], 1)
        words, _ = self.classifier(states, self.pooler(text_states[-1]))
        return words, self.img_classifier(states)

    @torch.no_grad()
    def write(self, features: Tensor, words: int, cls: int, sep: int, mask: int, stop: int) -> Tensor:
        """Greedy captions, int64 ``[n, words + 2]``: a [MASK] at every place, of which one more is visible in each step;
        it ends when all rows write the full stop in the same step."""
        n = len(features)
        ids = torch.full((n, words + 2), mask)
        ids[:, 0], ids[:, -1] = cls, sep
        visible = torch.zeros_like(ids, dtype=torch.bool)
        visible[:, 0] = True
        for position in range(1, words + 1):
            visible[:, position] = True
            logits, _ = self(features, ids, visible)
            ids[:, position] = logits[:, self.cells + position].softmax(-1).argmax(-1)
            if (ids[:, position] == stop).all():
                break
        return ids

    def scst_loss(
        self,
        features: Tensor,
        words: int,
        special: tuple[int, int, int],
        reward: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Self-critical loss: a greedy and a sampled caption of ``words`` words, each step a full pass with gradients.

        ``special`` are [CLS], [SEP] and [MASK]; ``reward`` gives ids int64 ``[n, words + 2]`` their rewards.
        """
        cls, sep, mask = special
        n = len(features)
        decoded, chances = [], features.new_zeros(n)
        for sampling in (False, True):
            ids = torch.full((n, words + 2), mask)
            ids[:, 0], ids[:, -1] = cls, sep
            visible = torch.zeros_like(ids, dtype=torch.bool)
            visible[:, 0] = True
            for position in range(1, words + 1):
                visible[:, position] = True
                logits, codes = self(features, ids.clone(), visible)
                choices = logits[:, self.cells + position].log_softmax(-1)
                chosen = torch.multinomial(choices.exp(), 1)[:, 0] if sampling else choices.argmax(-1)
                taken = choices.gather(1, chosen[:, None])[:, 0]
                chances = chances + taken * float(sampling) + 0 * codes.sum()
                ids[:, position] = chosen
            decoded.append(ids)
        greedy, sampled = decoded
        return -((reward(sampled) - reward(greedy)) * chances).mean()

    @torch.no_grad()
    def paint(self, ids: Tensor, pad: int, steps: int) -> tuple[Tensor, Tensor]:
        """Codes int64 ``[n, v]`` by mask-predict of ``steps`` steps, greedy, and the logits ``[n, v, K]`` that wrote
        them."""
        n = len(ids)
        codes = torch.zeros(n, self.cells, dtype=torch.int64)
        masked = torch.ones(n, self.cells, dtype=torch.bool)
        written = torch.zeros(n, self.cells, self.cluster_codebook.num_embeddings)
        for step in range(steps):
            _, logits = self(self.cluster_codebook(codes), ids, ids != pad, masked)
            logits = logits[:, : self.cells]
            written = torch.where(masked[..., None], logits, written)
            probabilities, likeliest = logits.softmax(-1).max(-1)
            codes = torch.where(masked, likeliest, codes)
            count = int((steps - step - 1) / steps * self.cells)
            lowest = probabilities.topk(count, dim=1, largest=False).indices
            masked = torch.zeros_like(masked).scatter(1, lowest, True)
        return codes, written

    def caption_loss(
        self, features: Tensor, ids: Tensor, positions: Tensor, mask: int, smoothing: float
    ) -> Tensor:
        """One [MASK] per caption at ``positions`` int64 ``[n]``, which sees what is before it."""
        rows = torch.arange(len(ids))
        targets = ids[rows, positions]
        hidden = ids.clone()
        hidden[rows, positions] = mask
        visible = torch.arange(ids.shape[1]) <= positions[:, None]
        words, codes = self(features, hidden, visible)
        loss = smoothed(words[:, self.cells :][rows, positions], targets, smoothing)
        return (
            loss + 0 * codes.sum()
        )  # so that all parameters have gradients, as distributed training wants them

    def paint_loss(self, codes: Tensor, ids: Tensor, masked: Tensor, pad: int, smoothing: float) -> Tensor:
        """Codes int64 ``[n, v]`` at ``masked`` from the others and the text."""
        words, logits = self(self.cluster_codebook(codes), ids, ids != pad, masked)
        loss = smoothed(logits[:, : self.cells][masked], codes[masked], smoothing)
        return loss + 0 * words.sum()


def smoothed(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with ``smoothing`` shared by the other classes."""
    wanted = torch.full_like(logits, smoothing / (logits.shape[-1] - 1))
    wanted.scatter_(1, targets[:, None], 1 - smoothing)
    return -(wanted * F.log_softmax(logits, -1)).sum(-1).mean()
