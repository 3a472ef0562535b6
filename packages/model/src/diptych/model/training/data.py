"""Batches for training, each a function of (seed, step)."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.loop import TrainingShards


class CaptionTable:
    """All training captions as ids, encoded once."""

    def __init__(self, train: TrainingShards, tokenizer: CaptionTokenizer, length: int) -> None:
        if len(train) == 0:
            raise UserError("the train split has no image; check the dataset and shard stages")
        self.texts = [train.captions(index) for index in range(len(train))]
        for key, texts in zip(train.keys, self.texts, strict=True):
            if not texts:
                raise UserError(f"image {key} of the train split has no caption; remove it or caption it")
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


def grid_features(train: TrainingShards, indices: list[int], device: torch.device) -> Tensor:
    """Read grid features as float32 ``[n, 64, D]`` (torch converts float16 many times faster than numpy)."""
    return torch.from_numpy(train.grid(indices)).to(device).float()


def read_codes(train: TrainingShards, indices: list[int], device: torch.device) -> Tensor:
    """Read codes as int64 ``[n, 64]``."""
    return torch.from_numpy(train.codes(indices)).to(device).long()
