"""What turns a transformer's states into logits: the part that word head and code head share, and the code head."""

from __future__ import annotations

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
