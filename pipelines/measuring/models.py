"""What `generate` needs of a model, whatever its family: captions, paintings, and real pictures drawn again from their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diptych.model.decoding.biart import caption_codes, paint_texts
from diptych.model.decoding.clip_rerank import rerank_paintings
from diptych.model.decoding.decode import caption_images, paint_captions, paint_features
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.pixels import to_uint8
from diptych.model.pretrained import load_biart, load_transformer

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.eval.scorers.clip import Clip
    from diptych.features.pictures import TokenizedPictures
    from diptych.features.shards.reading import ShardDataset
    from diptych.model.decoding.caption import Captions
    from diptych.model.decoding.options import CaptionOptions, PaintOptions
    from diptych.model.decoding.paint import Paintings
    from diptych.model.networks.aug_vae import AugVAE
    from diptych.model.networks.biart import BiART
    from diptych.model.networks.image_generator import ImageGenerator
    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer

RECONSTRUCTION = "reconstruction"


class GenerativeModel(Protocol):
    """Captions and paints. Pictures are those of a dataset as its family reads them, by their places."""

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """Of captions."""

    def captions(
        self, dataset: Any, indices: Sequence[int], options: CaptionOptions, seeds: Sequence[int]
    ) -> Captions:
        """`options.samples` captions of each picture, side by side."""

    def paint(
        self, prompts: list[str], ids: Tensor, options: PaintOptions, seeds: list[int], scorer: Clip | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Pictures uint8 ``[n, 3, S, S]`` of captions, int64 ``[n, t]``, of several samples the one that the scorer likes best; and
        of each, for `generate`, how it came about."""

    def repaint(self, dataset: Any, indices: Sequence[int]) -> dict[str, Tensor]:
        """Real pictures drawn again, uint8 ``[n, 3, S, S]``, by their columns for `generate`: `reconstruction` is what would be made of
        a perfect painting. Empty where the model has no image tokens."""


def read_unified(transformer: Path, image_generator: Path, device: str) -> GenerativeModel:
    """A model of the family `unified`; it paints by what the image generator reads, codes or features."""
    model, tokenizer, codebook = load_transformer(transformer, device)
    generator = load_image_generator(image_generator, device)
    kind = FeatureModel if generator.config.reads == "features" else CodeModel
    return kind(model, tokenizer, codebook, generator)


def read_l_verse(folder: Path, device: str) -> GenerativeModel:
    """A model of the family `l_verse`."""
    return LVerseModel(*load_biart(folder, device))


def best_paintings(
    paintings: Paintings,
    options: PaintOptions,
    prompts: Sequence[str],
    draw: Callable[[Tensor], Tensor],
    scorer: Clip | None,
) -> Paintings:
    """One painting of each caption: where there are several, the one that the scorer likes best."""
    if scorer is None or options.samples == 1:
        return paintings
    return rerank_paintings(paintings, options.samples, prompts, draw, scorer).best


def packed_codes(codes: Tensor) -> bytes:
    """Codes as `generate` writes them, little-endian uint16."""
    return codes.cpu().numpy().astype("<u2").tobytes()


@dataclass(frozen=True)
class UnifiedModel:
    """A transformer of two streams or one, its tokenizer, codebook (float ``[K, D]``) and image generator."""

    model: UnifiedTransformer
    tokenizer: CaptionTokenizer
    codebook: Tensor
    generator: ImageGenerator

    def captions(
        self, dataset: ShardDataset, indices: Sequence[int], options: CaptionOptions, seeds: Sequence[int]
    ) -> Captions:
        """From features or codes, as the model's config says."""
        import torch

        config, device = self.model.config, self.codebook.device
        rows = torch.from_numpy(caption_rows(config, dataset)(indices)).to(device)
        seen = caption_input(config, self.codebook, rows)
        return caption_images(self.model, self.tokenizer, seen, options, seeds)


class CodeModel(UnifiedModel):
    """One that predicts codes."""

    def paint(
        self, prompts: list[str], ids: Tensor, options: PaintOptions, seeds: list[int], scorer: Clip | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Rows have `codes` and `steps`."""
        paintings = paint_captions(
            self.model, self.tokenizer, self.codebook, ids, options, seeds, keep_steps=True
        )
        paintings = best_paintings(paintings, options, prompts, self._drawn, scorer)
        assert paintings.steps is not None
        rows = [
            {"codes": packed_codes(codes), "steps": steps.cpu().numpy().astype("<i4").tobytes()}
            for codes, steps in zip(paintings.codes, paintings.steps, strict=True)
        ]
        return to_uint8(self._drawn(paintings.codes).cpu()), rows

    def repaint(self, dataset: ShardDataset, indices: Sequence[int]) -> dict[str, Tensor]:
        """From the codes of their features."""
        import torch

        codes = torch.from_numpy(dataset.codes(indices)).to(self.codebook.device)
        return {RECONSTRUCTION: to_uint8(self._drawn(codes).cpu())}

    def _drawn(self, codes: Tensor) -> Tensor:
        return self.generator(self.codebook[codes]).float()


class FeatureModel(UnifiedModel):
    """One that regresses features, as LXMERT does (X-LXMERT 4.1), with an image generator that reads them."""

    def paint(
        self, prompts: list[str], ids: Tensor, options: PaintOptions, seeds: list[int], scorer: Clip | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Rows are empty: there are no codes."""
        features = paint_features(self.model, self.tokenizer, ids, options, seeds)
        return to_uint8(self.generator(features).float().cpu()), [{} for _ in prompts]

    def repaint(self, dataset: ShardDataset, indices: Sequence[int]) -> dict[str, Tensor]:
        """From their features."""
        import torch

        features = torch.from_numpy(dataset.grid(indices)).to(self.generator.feature_mean.device)
        return {RECONSTRUCTION: to_uint8(self.generator(features.float()).float().cpu())}


@dataclass(frozen=True)
class LVerseModel:
    """BiART and the AugVAE whose codes it reads and writes."""

    model: BiART
    tokenizer: CaptionTokenizer
    image_tokenizer: AugVAE

    def captions(
        self,
        dataset: TokenizedPictures,
        indices: Sequence[int],
        options: CaptionOptions,
        seeds: Sequence[int],
    ) -> Captions:
        """From codes."""
        return caption_codes(self.model, self.tokenizer, self._codes(dataset, indices), options, seeds)

    def paint(
        self, prompts: list[str], ids: Tensor, options: PaintOptions, seeds: list[int], scorer: Clip | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Rows have `codes`."""
        paintings = paint_texts(self.model, self.tokenizer, ids, options, seeds)
        paintings = best_paintings(paintings, options, prompts, self._drawn, scorer)
        rows = [{"codes": packed_codes(codes)} for codes in paintings.codes]
        return to_uint8(self._drawn(paintings.codes).cpu()), rows

    def repaint(self, dataset: TokenizedPictures, indices: Sequence[int]) -> dict[str, Tensor]:
        """From their codes."""
        return {RECONSTRUCTION: to_uint8(self._drawn(self._codes(dataset, indices)).cpu())}

    def _codes(self, dataset: TokenizedPictures, indices: Sequence[int]) -> Tensor:
        import torch

        return torch.from_numpy(dataset.codes(indices)).to(self.model.words.weight.device)

    def _drawn(self, codes: Tensor) -> Tensor:
        import torch

        with torch.autocast(codes.device.type, enabled=False):  # as the packaged model does
            return self.image_tokenizer.pixels(codes).float()
