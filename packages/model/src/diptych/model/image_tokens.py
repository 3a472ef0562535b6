"""AugVAE as what fills a store with codes (:class:`diptych.features.extraction.encoder.ImageEncoder`): tokens are keyed by picture and
image tokenizer, as grid features are by picture and detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diptych.features.errors import UserError as FeaturesError
from diptych.features.images import resize_square, to_uint8_tensor
from diptych.model.errors import UserError
from diptych.model.networks.aug_vae import AugVAE, load_aug_vae
from diptych.model.pixels import from_uint8

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from diptych.features.store import Values

# What a store's key says of how pictures reach the network.
PREPROCESSING = "RGB, squeezed to a square (bicubic, antialiased), -1..1"


@dataclass(frozen=True)
class ImageTokenizerLoader:
    """The folder of a single-level AugVAE."""

    folder: str

    def __call__(self, device: str) -> AugVAEEncoder:
        """Load it.

        Raises:
            diptych.features.errors.UserError: the network has several grids of codes; or as of :func:`diptych.model.networks.aug_vae.load_aug_vae`.
        """
        try:
            return AugVAEEncoder(load_aug_vae(Path(self.folder), device))
        except UserError as error:
            raise FeaturesError(str(error)) from None  # which extraction knows, also across machines


class AugVAEEncoder:
    """A single-level AugVAE's codes, int64 ``[n, cells]``, cells row-major from the top left."""

    def __init__(self, model: AugVAE) -> None:
        if model.config.coded_level is None:
            raise UserError(
                "a multi-level autoencoder has several grids of codes; tokens are those of a single-level one"
            )
        self.model = model

    @property
    def values(self) -> Values:
        """Uint16 ``[cells]``."""
        from diptych.features.store import code_values  # brings Parquet, which a packaged model does without

        return code_values(self.model.config.cells)

    @property
    def meta(self) -> dict[str, Any]:
        """The hash of the image tokenizer, preprocessing and sizes."""
        config = self.model.config
        return {
            "image_tokenizer": image_tokenizer_hash(self.model),
            "preprocessing": {"image_size": config.image_size, "how": PREPROCESSING},
            "precision": "float32",
            "cells": config.cells,
            "codebook_size": config.codebook_size,
        }

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """A square, whatever the picture."""
        return self.model.config.image_size, self.model.config.image_size

    def prepare(self, image: Image.Image) -> Tensor:
        """RGB image to uint8 ``[3, S, S]``."""
        return to_uint8_tensor(resize_square(image, self.model.config.image_size))

    def encode(self, images: Tensor) -> Tensor:
        """Pixels uint8 ``[n, 3, S, S]`` to codes int64 ``[n, cells]``, in float32: near codes are not told apart in less."""
        with torch.autocast(images.device.type, enabled=False):
            (codes,) = self.model.codes(from_uint8(images, images.device))
        return codes.flatten(1)


def image_tokenizer_hash(model: AugVAE) -> str:
    """sha256 over the weights and the codebook."""
    from diptych.features.detector.grid_detector import hash_weights  # brings what trains detectors

    return hash_weights(model.state_dict())
