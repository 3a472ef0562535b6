"""The grid: boxes, pooling, and what a cell shows."""

import torch
from torchvision.ops import roi_align

from diptych.features.grid import CELLS, cell_targets, grid_boxes, pool_grid


def test_boxes_tile_the_image_row_by_row() -> None:
    boxes = grid_boxes(64, 128)
    assert boxes.shape == (CELLS, 4)
    assert boxes[0].tolist() == [0, 0, 16, 8]
    assert boxes[1].tolist() == [16, 0, 32, 8]
    assert boxes[8].tolist() == [0, 8, 16, 16]
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() == 64 * 128


def test_pooling_equals_roi_align() -> None:
    torch.manual_seed(0)
    for height, width, bins in ((16, 16, 4), (25, 38, 7), (8, 8, 2), (50, 17, 3)):
        features = torch.randn(2, 5, height, width, dtype=torch.float64)
        boxes = grid_boxes(height, width).double()
        expected = roi_align(features, [boxes, boxes], bins, sampling_ratio=1, aligned=True)
        torch.testing.assert_close(pool_grid(features, bins), expected, atol=1e-5, rtol=1e-5)


def test_a_cell_shows_the_smallest_object_that_covers_a_quarter_of_it() -> None:
    boxes = torch.tensor([[0.0, 0, 64, 64], [0, 0, 24, 24], [0, 0, 8, 8], [24, 0, 25, 8]])
    index, share = cell_targets(boxes, torch.tensor([1, 2, 3, 4]), 64, 64)
    assert index[0] == 2  # the 8x8 object, not the one around it
    assert index[1] == 1 and index[2] == 1
    assert index[3] == 0  # an eighth of the cell is too little
    assert index[63] == 0
    assert share[0] == 1


def test_an_image_without_objects_has_empty_cells() -> None:
    index, share = cell_targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 64, 64)
    assert (index == -1).all() and (share == 0).all()
