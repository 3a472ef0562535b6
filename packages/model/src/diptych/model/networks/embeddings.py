"""Words and grid cells as the states that a transformer's layers take.

Letters in shape comments: n texts or images, t text positions, v grid cells (64), h hidden size, D feature size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.devices import Places
from diptych.model.errors import UserError
from diptych.model.networks.attention import LAYER_NORM_EPSILON
from diptych.model.networks.config import TransformerConfig


class TextEmbedding(nn.Module):
    """LayerNorm(word + position + token type), then dropout."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.text_positions, config.hidden_size)
        self.token_types = nn.Embedding(2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.dropout = config.dropout

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed ids int64 ``[n, t]`` that stand at the positions from ``start`` on: ``[n, t, h]``.

        Raises:
            UserError: the text is longer than the position table.
        """
        if start + ids.shape[1] > len(self.positions.weight):
            raise UserError(
                f"a text of {start + ids.shape[1]} tokens, but this transformer has {len(self.positions.weight)} text "
                "positions; use a shorter caption length"
            )
        offsets = self.positions.weight[start : start + ids.shape[1]] + self.token_types.weight[0]
        return F.dropout(self.norm(self.words(ids) + offsets), self.dropout, self.training)


class VisualEmbedding(nn.Module):
    """(LayerNorm(dense(features)) + LayerNorm(dense(boxes))) / 2, then dropout.

    Grid features and codebook vectors have an arbitrary scale and a large common part, so they are standardised
    first with fixed statistics, which the network takes from its codebook (``set_codebook``); at the start these are
    the identity, as imported checkpoints expect. A learned mask feature stands in for cells that are to be predicted.
    """

    box_sizes = 4

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.features = nn.Linear(config.feature_dim, config.hidden_size)
        self.features_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.boxes = nn.Linear(self.box_sizes, config.hidden_size)
        self.rows, self.columns = (
            nn.Embedding(config.grid_size, config.hidden_size) if config.cell_positions else None
            for _ in range(2)
        )
        self.boxes_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        # Not zero: LayerNorm of a zero vector has gradients of the order of 1e6.
        self.mask_feature = nn.Parameter(torch.randn(config.feature_dim))
        self.dropout = config.dropout
        self.register_buffer("grid_boxes", grid_boxes(config.grid_size, self.box_sizes))
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_scale", torch.ones(()))

    def forward(self, features: Tensor, masked: Tensor | Places | None, image_type: Tensor) -> Tensor:
        """Embed features ``[n, v, D]``; cells where ``masked`` (bool ``[n, v]`` or counted; None: none) hold the mask feature. ``image_type``
        ``[h]``, the text embedding's token type 1, stays unread: LXMERT's streams need none."""
        states, boxes = self.parts(features, masked)
        return F.dropout((states + boxes) / 2, self.dropout, self.training)

    def parts(self, features: Tensor, masked: Tensor | Places | None) -> tuple[Tensor, Tensor]:
        """Normed features ``[n, v, h]`` and boxes ``[v, h]``."""
        if masked is None:
            states = self.project(features)
        else:
            # The masked cells hold one and the same feature: one product for all of them.
            masked = Places.of(masked)
            states = (
                self.features_norm(self.features(self.mask_feature)).expand(masked.mask.numel(), -1).clone()
            )
            states[masked.others] = self.project(features.flatten(0, 1)[masked.others])
            states = states.unflatten(0, masked.mask.shape)
        positions = self.boxes(self.grid_boxes)
        if self.rows is not None and self.columns is not None:
            positions = positions + (self.rows.weight[:, None] + self.columns.weight).flatten(0, 1)
        return states, self.boxes_norm(positions)

    def project(self, features: Tensor) -> Tensor:
        """LayerNorm(dense(features)) of ``[..., D]``, without the boxes: ``[..., h]``."""
        return self.features_norm(self.features((features - self.feature_mean) / self.feature_scale))


class TypedVisualEmbedding(VisualEmbedding):
    """UNITER's: LayerNorm(LayerNorm(dense(features)) + LayerNorm(dense(boxes)) + token type of images), then dropout; boxes have
    width, height and area beside their corners (UNITER 3.1)."""

    box_sizes = 7

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)

    def forward(self, features: Tensor, masked: Tensor | Places | None, image_type: Tensor) -> Tensor:
        states, boxes = self.parts(features, masked)
        return F.dropout(self.norm(states + (boxes + image_type)), self.dropout, self.training)


def grid_boxes(grid_size: int, sizes: int = 4) -> Tensor:
    """Return the cells' normalised boxes, float32 ``[grid_size ** 2, sizes]``, row-major from the top left: the first ``sizes``
    of x0, y0, x1, y1, width, height, area."""
    starts = torch.arange(grid_size) / grid_size
    y, x = torch.meshgrid(starts, starts, indexing="ij")
    corners = torch.stack([x, y], -1).view(-1, 2)
    boxes = torch.cat([corners, corners + 1 / grid_size], 1)
    width_height = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes, width_height, width_height.prod(1, keepdim=True)], 1)[:, :sizes]
