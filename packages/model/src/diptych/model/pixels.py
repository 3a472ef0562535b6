"""Pixels of networks, float in -1..1, as pictures: float in 0..1, uint8, Pillow's images, PNG files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.model.devices import sent

if TYPE_CHECKING:
    from PIL import Image


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels float in -1..1 as float in 0..1, of the same shape and dtype."""
    return (pixels + 1) / 2


def from_uint8(pictures: Tensor, device: torch.device) -> Tensor:
    """Pictures uint8 ``[n, 3, H, W]`` as pixels float in -1..1, channels-last, on ``device``."""
    pixels = sent(pictures, device).float().div_(127.5).sub_(1)
    return pixels.contiguous(memory_format=torch.channels_last)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels float in -1..1 as uint8 of the same shape, rounded to the nearest (half to even)."""
    return unit_to_uint8(to_unit_range(pixels))


def unit_to_uint8(pixels: Tensor) -> Tensor:
    """Pixels float in 0..1 as uint8 of the same shape, rounded to the nearest (half to even)."""
    return (pixels * 255).round().clamp(0, 255).byte()


def to_image(picture: Tensor) -> Image.Image:
    """A picture uint8 ``[3, H, W]`` as an RGB image."""
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def png(picture: Tensor) -> bytes:
    """The content of a PNG file of a picture uint8 ``[3, H, W]``."""
    content = io.BytesIO()
    to_image(picture).save(content, "PNG")
    return content.getvalue()
