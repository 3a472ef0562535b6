"""Pictures with captions, as trainings read them that pair a whole batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from diptych.features.order import batch_indices
from diptych.model.errors import UserError
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.data import Captioned, CaptionTable
from diptych.model.training.processes import current_processes


class CaptionedPictures(Captioned, Protocol):
    """Pictures and their captions (``diptych.features.pictures.ManifestPictures``)."""

    def images(self, indices: Any, size: int) -> Tensor:
        """Decoded pictures, uint8 ``[n, 3, size, size]``."""


class PairSettings(Protocol):
    """What :class:`CaptionedBatches` reads of a training's config."""

    @property
    def batch_size(self) -> int: ...

    @property
    def caption_length(self) -> int: ...

    @property
    def accumulation(self) -> int: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class CaptionedBatches:
    """Batches of pictures, each with one of its captions. A loss that tells the pairs of a batch apart, and norms over a batch, need
    all of it at once, in one process.

    Raises:
        UserError: more than one process or piece, or fewer pictures than in a batch.
    """

    config: PairSettings
    train: CaptionedPictures
    captions: CaptionTable
    image_size: int

    @classmethod
    def of(
        cls, config: PairSettings, train: CaptionedPictures, tokenizer: CaptionTokenizer, image_size: int
    ) -> CaptionedBatches:
        """Batches of ``train``."""
        if config.accumulation != 1 or current_processes().count != 1:
            raise UserError(
                "this training compares all pairs of a batch: it takes accumulation 1 and one process"
            )
        if len(train) < config.batch_size:
            raise UserError(f"batch_size {config.batch_size} is larger than the {len(train)} training images")
        return cls(config, train, CaptionTable(train, tokenizer, config.caption_length), image_size)

    def indices(self, step: int) -> Sequence[int]:
        """The pictures of ``step``."""
        return batch_indices(len(self.train), self.config.batch_size, self.config.seed, step).tolist()

    def read(self, step: int) -> Tensor:
        """The pictures of ``step``, uint8 ``[n, 3, S, S]``."""
        return self.train.images(self.indices(step), self.image_size)

    def texts(self, step: int) -> Tensor:
        """A caption of each, int64 ``[n, t]``, drawn from torch's global generator."""
        return self.captions.choose(list(self.indices(step)), 1)[0][:, 0]
