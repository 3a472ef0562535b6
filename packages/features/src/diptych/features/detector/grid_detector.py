"""What extraction needs of a detector, whatever network it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor


class GridDetector(Protocol):
    """A frozen network that describes the 8x8 grid of an image."""

    @property
    def feature_dim(self) -> int:
        """D, the length of a grid feature."""
        ...

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything besides the weights that determines a feature, JSON-able: pixels, pooling, versions."""
        ...

    @property
    def weights_hash(self) -> str:
        """sha256 over the weights; computed once."""
        ...

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels of the network's input for an upright image of `width` x `height`.

        Images of one input size can go through the network together.
        """
        ...

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright RGB image -> the network's input on the CPU, [3, H, W] with (H, W) as `input_size` says.

        Safe to call from several threads.
        """
        ...

    def grid_features(self, images: Tensor) -> Tensor:
        """Prepared images, stacked and on the detector's device, [n, 3, H, W] -> float32 [n, 64, D].

        Cells are row-major from the top left; features are non-negative (they come out of a ReLU).
        """
        ...


class PyramidGridDetector(GridDetector, Protocol):
    """A grid detector whose feature maps serve as the encoder of a perceptual loss too (X-LXMERT D.5)."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: RGB float [n, 3, H, W] in 0..1 -> feature maps [n, C, h, w], the finest first."""
        ...


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """sha256 of all tensors' names and bytes in the order of their names, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
