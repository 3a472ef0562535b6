"""Systems that ours are compared with, as `generate` uses models (UMT, table 2). What one cannot do, nobody asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diptych.model.baselines import load_butd, load_dm_gan
from diptych.model.decoding.butd import caption_vectors
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.dm_gan import paint_pixels
from diptych.model.decoding.gibbs import gibbs_texts
from diptych.model.errors import UserError
from diptych.model.pixels import to_uint8
from pipelines.measuring.models import CodeModel

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.eval.scorers.clip import Clip
    from diptych.features.shards.reading import ShardDataset
    from diptych.model.baselines import Painter
    from diptych.model.decoding.options import CaptionOptions, PaintOptions
    from diptych.model.networks.butd import BUTD
    from diptych.model.tokenizer import CaptionTokenizer


class VectorPictures(Protocol):
    """Pictures as sets of vectors."""

    def grid(self, indices: Any) -> Any:
        """Vectors, numpy float16 ``[n, k, D]``."""


@dataclass(frozen=True)
class CaptionerModel:
    """BUTD, which captions."""

    model: BUTD
    tokenizer: CaptionTokenizer

    @classmethod
    def read(cls, folder: Path, device: str) -> CaptionerModel:
        """The model of a directory."""
        return cls(*load_butd(folder, device))

    def captions(
        self, dataset: VectorPictures, indices: Sequence[int], options: CaptionOptions, seeds: Sequence[int]
    ) -> Captions:
        """From what describes the pictures."""
        import torch

        vectors = torch.from_numpy(dataset.grid(indices)).to(self.model.words.weight.device).float()
        return caption_vectors(self.model, self.tokenizer, vectors, options, seeds)

    def paint(
        self, prompts: list[str], ids: Tensor, options: PaintOptions, seeds: list[int], scorer: Clip | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """It does not."""
        raise UserError("BUTD captions and does not paint")

    def repaint(self, dataset: Any, indices: Sequence[int]) -> dict[str, Tensor]:
        """It has no tokens."""
        return {}


@dataclass(frozen=True)
class GANModel:
    """DM-GAN, which paints."""

    painter: Painter
    tokenizer: CaptionTokenizer

    @classmethod
    def read(cls, folder: Path, device: str) -> GANModel:
        """The model of a directory."""
        return cls(*load_dm_gan(folder, device))

    def captions(
        self, dataset: Any, indices: Sequence[int], options: CaptionOptions, seeds: Sequence[int]
    ) -> Captions:
        """It does not."""
        raise UserError("DM-GAN paints and does not caption")

    def paint(
        self, prompts: list[str], ids: Tensor, options: PaintOptions, seeds: list[int], scorer: Clip | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """One picture of each caption, of no options; rows are empty: there are no codes. In float32, as it was trained."""
        import torch

        with torch.autocast(ids.device.type, enabled=False):
            pixels = paint_pixels(self.painter.generator, self.painter.encoder, self.tokenizer, ids, seeds)
        return to_uint8(pixels.cpu()), [{} for _ in prompts]

    def repaint(self, dataset: Any, indices: Sequence[int]) -> dict[str, Tensor]:
        """It has no tokens."""
        return {}


@dataclass(frozen=True)
class PretrainedModel(CodeModel):
    """X-LXMERT without fine-tuning: its captions are texts by Gibbs sampling from the word "A" (UMT 5.4)."""

    words: int = 12

    def captions(
        self, dataset: ShardDataset, indices: Sequence[int], options: CaptionOptions, seeds: Sequence[int]
    ) -> Captions:
        """One of each picture, from codebook vectors, which its pretraining saw; of `options` it knows none but the start."""
        import torch

        codes = torch.from_numpy(dataset.codes(indices)).to(self.codebook.device)
        start = options.start or "A"
        ids = gibbs_texts(self.model, self.tokenizer, self.codebook[codes], start, self.words, list(seeds))
        return Captions(ids, torch.zeros(ids.shape, device=ids.device))
