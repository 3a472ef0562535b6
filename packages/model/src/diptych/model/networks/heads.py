"""What turns a transformer's states into logits: the part that word head and code head share, the code head, and what reads
a whole text with its picture from the state of [CLS]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.networks.attention import LAYER_NORM_EPSILON
from diptych.model.networks.config import TransformerConfig


class HeadTransform(nn.Sequential):
    """Dense, GELU, LayerNorm: the first part of both heads."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        )


class CodeHead(nn.Module):
    """States to logits over the codes; the three kinds are explained in :class:`TransformerConfig`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transform = HeadTransform(config.hidden_size)
        width = config.hidden_size
        self.features = (
            nn.Identity() if config.code_head == "linear" else nn.Linear(width, config.feature_dim)
        )
        if config.code_head != "linear":
            width = config.feature_dim
        self.codes = nn.Linear(width, config.codebook_size)
        self.tied = config.code_head == "codebook"
        self.codes.weight.requires_grad_(not self.tied)

    def forward(self, states: Tensor) -> Tensor:
        return self.codes(self.features(self.transform(states)))


class FeatureHead(nn.Module):
    """States ``[..., h]`` to the grid features that they stand for ``[..., D]``: LXMERT's head of masked visual feature
    regression, which X-LXMERT has not."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transform = HeadTransform(config.hidden_size)
        self.features = nn.Linear(config.hidden_size, config.feature_dim)

    def forward(self, states: Tensor) -> Tensor:
        return self.features(self.transform(states))


class Pooler(nn.Linear):
    """tanh(dense(state of [CLS])): what matching and answers are read from (LXMERT 2.4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states).tanh()


class AnswerHead(nn.Module):
    """Pooled state ``[..., h]`` to logits over the answers of the answer table ``[..., A]``: dense to twice the width, GELU,
    LayerNorm, dense (LXMERT's question answering head)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = 2 * config.hidden_size
        self.inner = nn.Linear(config.hidden_size, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.answers = nn.Linear(width, config.answers)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.answers(self.norm(F.gelu(self.inner(pooled))))


class PairHead(nn.Module):
    """Pooled states of a statement with each of two pictures ``[..., 2 h]`` to logits ``[..., 2]`` of (false, true): dense,
    GELU, LayerNorm, dense (LXMERT's NLVR2 head)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = 2 * config.hidden_size
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.truth = nn.Linear(width, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.truth(self.norm(F.gelu(self.inner(pooled))))
