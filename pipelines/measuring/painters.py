"""How a transformer paints captions: by codes, or, where it regresses features as LXMERT does, by these (X-LXMERT 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from diptych.model.decoding.clip_rerank import rerank_paintings
from diptych.model.decoding.decode import paint_captions, paint_features
from diptych.model.pixels import to_uint8

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.eval.scorers.clip import Clip
    from diptych.features.shards.reading import ShardDataset
    from diptych.model.decoding.options import PaintOptions
    from diptych.model.networks.image_generator import ImageGenerator
    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer


class Painter(Protocol):
    """Paints, and repaints what the image generator would make of a perfect painting."""

    def paint(self, prompts: list[str], ids: Tensor, seeds: list[int]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Pictures uint8 ``[n, 3, S, S]`` of captions, int64 ``[n, t]``; and of each, for `generate`, how it came about."""

    def repaint(self, dataset: ShardDataset, indices: Sequence[int]) -> Tensor:
        """Reconstructions uint8 ``[n, 3, S, S]`` of real pictures."""


@dataclass(frozen=True)
class CodePainter:
    """Of a transformer that predicts codes. codebook: float ``[K, D]``. scorer: chooses where there are several samples."""

    model: UnifiedTransformer
    tokenizer: CaptionTokenizer
    generator: ImageGenerator
    codebook: Tensor
    options: PaintOptions
    scorer: Clip | None

    def paint(self, prompts: list[str], ids: Tensor, seeds: list[int]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Rows have `codes` and `steps`."""
        options = self.options
        paintings = paint_captions(
            self.model, self.tokenizer, self.codebook, ids, options, seeds, keep_steps=True
        )
        if self.scorer is not None and options.samples > 1:
            paintings = rerank_paintings(paintings, options.samples, prompts, self._drawn, self.scorer).best
        assert paintings.steps is not None
        rows = [
            {
                "codes": codes.cpu().numpy().astype("<u2").tobytes(),
                "steps": steps.cpu().numpy().astype("<i4").tobytes(),
            }
            for codes, steps in zip(paintings.codes, paintings.steps, strict=True)
        ]
        return to_uint8(self._drawn(paintings.codes).cpu()), rows

    def repaint(self, dataset: ShardDataset, indices: Sequence[int]) -> Tensor:
        import torch

        codes = torch.from_numpy(dataset.codes(indices)).to(self.codebook.device)
        return to_uint8(self._drawn(codes).cpu())

    def _drawn(self, codes: Tensor) -> Tensor:
        return self.generator(self.codebook[codes]).float()


@dataclass(frozen=True)
class FeaturePainter:
    """Of a transformer that regresses features. generator: one that reads features."""

    model: UnifiedTransformer
    tokenizer: CaptionTokenizer
    generator: ImageGenerator
    options: PaintOptions

    def paint(self, prompts: list[str], ids: Tensor, seeds: list[int]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Rows are empty: there are no codes."""
        features = paint_features(self.model, self.tokenizer, ids, self.options, seeds)
        return to_uint8(self.generator(features).float().cpu()), [{} for _ in prompts]

    def repaint(self, dataset: ShardDataset, indices: Sequence[int]) -> Tensor:
        import torch

        features = torch.from_numpy(dataset.grid(indices)).to(self.generator.feature_mean.device)
        return to_uint8(self.generator(features.float()).float().cpu())
