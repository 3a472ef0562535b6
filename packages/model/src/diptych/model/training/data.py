"""Data for training: captions as ids, rows of shards as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.model.devices import sent
from diptych.model.errors import UserError
from diptych.model.image_features import PictureRows
from diptych.model.tokenizer import CaptionTokenizer


class Captioned(Protocol):
    """Images with captions."""

    keys: list[str]

    def __len__(self) -> int:
        """Number of images."""

    def captions(self, index: int) -> list[str]:
        """The captions of one image."""


class TrainingShards(PictureRows, Captioned, Protocol):
    """The part of ``diptych.features.shards.reading.ShardDataset`` that training reads."""


class CaptionTable:
    """All captions of some images (by default all) as ids, encoded once."""

    def __init__(
        self,
        shards: Captioned,
        tokenizer: CaptionTokenizer,
        length: int,
        images: Sequence[int] | None = None,
    ) -> None:
        if len(shards) == 0:
            raise UserError("the train split has no image; check the dataset and shard stages")
        images = range(len(shards)) if images is None else images
        self.texts = [shards.captions(image) for image in images]
        for image, texts in zip(images, self.texts, strict=True):
            if not texts:
                raise UserError(f"image {shards.keys[image]} has no caption; remove it or caption it")
        encoded = tokenizer.encode([text for texts in self.texts for text in texts], length)
        self.ids = encoded.split([len(texts) for texts in self.texts])

    def choose(self, indices: list[int], captions_per_image: int) -> tuple[Tensor, list[str]]:
        """Draw captions of each image, different ones while there are enough (torch's global generator).

        Returns:
            ids int64 ``[n, captions_per_image, length]``, and the first drawn text of each image.
        """
        rows, texts = [], []
        for index in indices:
            count = len(self.ids[index])
            chosen = torch.randperm(count)[torch.arange(captions_per_image) % count]
            rows.append(self.ids[index][chosen])
            texts.append(self.texts[index][int(chosen[0])])
        return torch.stack(rows), texts


def read_rows(
    read: Callable[[list[int]], Any], indices: list[int], pieces: list[slice], device: torch.device
) -> list[Tensor]:
    """Read the images ``indices`` by one of the shards' methods (``grid``, ``codes``): a tensor for each piece.

    The tensors are on the CPU, in the shards' own dtype; for a GPU in memory that it can fetch from without waiting.
    """
    rows = [torch.from_numpy(read(indices[piece])) for piece in pieces]
    if device.type != "cuda":
        return rows
    with torch.cuda.device(device):  # a thread of its own would use the first GPU
        return [tensor.pin_memory() for tensor in rows]


def on_device(rows: Tensor, device: torch.device) -> Tensor:
    """Move grid features (float16; torch converts them many times faster than numpy) or codes to ``device``, as
    float32 or int64."""
    rows = sent(rows, device)
    return rows.float() if rows.is_floating_point() else rows.long()
