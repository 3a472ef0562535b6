"""Pixels of networks as pictures: to the last bit, at the ends of the range, as files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.model.pixels import png, to_image, to_uint8, to_unit_range, unit_to_uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ways_to_uint8_are_one(dtype: torch.dtype) -> None:
    """Over 0..1 as over 0..255, in every precision: halving and doubling round nothing."""
    torch.manual_seed(0)
    halves = torch.arange(256) / 127.5 - 1 + 1 / 255  # where rounding is decided
    pixels = torch.cat([torch.rand(200_000) * 2 - 1, halves, torch.linspace(-1, 1, 65_536)]).to(dtype)
    direct = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert to_uint8(pixels).equal(direct) and len(direct.unique()) > 100
    assert unit_to_uint8(to_unit_range(pixels)).equal(direct)
    assert to_unit_range(pixels).dtype == dtype


def test_the_ends_of_the_range() -> None:
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1 / 255, 1.0, 1.5])
    assert to_uint8(pixels).tolist() == [0, 0, 128, 128, 255, 255]
    assert to_unit_range(pixels[1:3]).tolist() == [0.0, 0.5]
    assert unit_to_uint8(torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])).tolist() == [0, 0, 128, 255, 255]


def test_pictures_as_images_and_files() -> None:
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    image = to_image(picture)
    assert image.mode == "RGB" and image.size == (7, 5)
    read = Image.open(io.BytesIO(png(picture)))
    assert read.format == "PNG" and read.size == (7, 5)
    for found in (image, read):
        assert np.array_equal(np.asarray(found), picture.permute(1, 2, 0).numpy())
