"""A transformer's layer of one stream, and how the weights of all of it start."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.networks.attention import LAYER_NORM_EPSILON, Attention, KeyValueCache
from diptych.model.networks.config import TransformerConfig


class FeedForward(nn.Module):
    """Dense, GELU, dense, dropout, residual and LayerNorm (post-norm)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.outer = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.dropout = config.dropout

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(
            states + F.dropout(self.outer(F.gelu(self.inner(states))), self.dropout, self.training)
        )


class EncoderLayer(nn.Module):
    """A layer over one sequence."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, states: Tensor, bias: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        return self.feed_forward(self.attention(states, bias, cache))


def initialise(network: nn.Module, std: float) -> None:
    """Draw the matrices of linear layers and the embedding tables of ``network`` anew, in its own order, from a
    normal distribution of standard deviation ``std``; biases of linear layers become zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
