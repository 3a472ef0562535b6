"""The fixed 8x8 grid of boxes whose pooled features describe an image (X-LXMERT, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 8
CELLS = GRID * GRID


def grid_boxes(height: float, width: float) -> Tensor:
    """The grid's boxes for an image of `height` x `width`: float32 [64, 4], x0 y0 x1 y1, row-major.

    With height = width = 1 these are the normalised boxes that the transformer embeds as positions.
    """
    start = torch.arange(GRID, dtype=torch.float32) / GRID
    y0, x0 = (value.flatten() for value in torch.meshgrid(start, start, indexing="ij"))
    step = 1 / GRID
    return torch.stack([x0, y0, x0 + step, y0 + step], dim=1) * torch.tensor([width, height, width, height])


def pool_grid(features: Tensor, bins: int) -> Tensor:
    """RoIAlign of the grid's boxes, computed as one resampling of the whole map.

    The boxes tile the image, so the sampling points of all of them (one a bin, half-pixel aligned)
    form one regular lattice: a bilinear resize to 8*bins x 8*bins visits exactly them. Equal to
    `torchvision.ops.roi_align(aligned=True, sampling_ratio=1)` on `grid_boxes`, several times faster,
    and its backward pass runs on all cores.

    features: [n, C, H, W], one pyramid level. Returns [n*64, C, bins, bins], cells row-major.
    """
    count, channels = features.shape[:2]
    lattice = F.interpolate(features, size=(GRID * bins, GRID * bins), mode="bilinear", align_corners=False)
    cells = lattice.view(count, channels, GRID, bins, GRID, bins).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count * CELLS, channels, bins, bins)


def cell_targets(boxes: Tensor, labels: Tensor, height: float, width: float) -> tuple[Tensor, Tensor]:
    """What each grid cell shows: the object that covers most of it, smaller objects first.

    boxes: float [m, 4] in pixels, labels: int64 [m]. Returns the object's index int64 [64] (-1 where
    nothing covers at least a quarter of the cell) and the share of the cell that it covers, float [64].
    Among objects that cover a quarter, the smallest wins: a kite before the sky behind it.
    """
    cells = grid_boxes(height, width)
    if len(labels) == 0:
        return torch.full((CELLS,), -1), torch.zeros(CELLS)
    overlap = (
        torch.minimum(cells[:, None, 2:], boxes[None, :, 2:])
        - torch.maximum(cells[:, None, :2], boxes[None, :, :2])
    ).clamp(min=0)
    share = overlap.prod(dim=2) / (height / GRID * width / GRID)  # [64, m]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    # Sorting by area makes "the smallest one that covers enough" the first hit of an argmax.
    order = area.argsort(stable=True)
    enough = share[:, order] >= 0.25
    found = enough.any(dim=1)
    index = order[enough.float().argmax(dim=1)]
    index = torch.where(found, index, torch.full_like(index, -1))
    return index, share.gather(1, index.clamp(min=0)[:, None]).squeeze(1) * found
