"""The section `l_verse` of params.yaml, and where its stages read and write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.features.extraction.extract import EncodingConfig
from diptych.features.pictures import TokenizedPictures
from diptych.features.ranges import check_at_least
from diptych.model.training.autoencoder import AutoencoderTrainingConfig
from diptych.model.training.biart_config import BiARTTrainingConfig
from pipelines.measuring.generate_params import GenerateParams
from pipelines.measuring.package_params import CommonPackageParams

SCENES, MANIFEST = Path("data/dataset/scenes.parquet"), Path("data/dataset/manifest.parquet")
TOKENS, GENERATED = Path("data/l_verse/tokens"), Path("data/l_verse/generated")
MULTI_LEVEL, SINGLE_LEVEL, BIART = (
    Path("models/l_verse") / name for name in ("autoencoder_ml", "autoencoder_sl", "biart")
)
FIGURES = Path("data/l_verse/figures.json")
ALL_LEVELS = "multi_level"  # pictures drawn again by AugVAE-ML; `reconstruction` are those of AugVAE-SL
MADE_BY = "make l-verse"


@dataclass(frozen=True)
class AutoencoderParams:
    """scenes: the table of the pictures that both autoencoders learn from, data/dataset/scenes.parquet, or that of a folder of
    others. network: a named size of diptych.model (base, toybox, smoke). perceptual: what says how alike pictures look, the folder
    models/detector, a folder with LPIPS's files, or a file with torchvision's ResNet-50 weights (docs/l-verse.md).
    max_failed_share: unreadable pictures that are left out at most, as a share of those of a split.

    multi_level, single_level: the schedules of AugVAE-ML and of the AugVAE-SL that is made from it.
    """

    scenes: Path
    network: str
    perceptual: Path
    max_failed_share: float
    multi_level: AutoencoderTrainingConfig
    single_level: AutoencoderTrainingConfig

    def __post_init__(self) -> None:
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"max_failed_share is a share between 0 and 1, is {self.max_failed_share}")


@dataclass(frozen=True)
class VocabularyParams:
    """min_count: words that occur so often in the training captions are in the vocabulary; pieces: or so many pieces of words by
    byte-pair encoding, the paper's. One of them is null."""

    min_count: int | None
    pieces: int | None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "min_count", "pieces")
        if (self.min_count is None) == (self.pieces is None):
            raise ValueError("give one of min_count and pieces, and null for the other")


@dataclass(frozen=True)
class BiARTParams:
    """network: a named size of diptych.model (base, toybox, smoke). vocabulary: of texts. training: the schedule."""

    network: str
    vocabulary: VocabularyParams
    training: BiARTTrainingConfig


@dataclass(frozen=True)
class Params:
    """autoencoder: both AugVAE. tokens: how pictures are encoded. biart: the transformer. generate: as the section of that name;
    several samples of a picture or caption, of which the scorer takes one, are `generate.caption.samples` and
    `generate.paint.samples` (L-Verse 3.6). package: the packaged model. pictures, captions: how many of each choice the page shows."""

    autoencoder: AutoencoderParams
    tokens: EncodingConfig
    biart: BiARTParams
    generate: GenerateParams
    package: CommonPackageParams
    pictures: int
    captions: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "pictures", "captions")
        if any(wanted.answer for wanted in self.generate.sets.values()):
            raise ValueError("generate.sets: L-Verse does not answer questions; set answer to null")
        if self.generate.paint.method != "rows":
            raise ValueError(
                f"generate.paint.method: L-Verse paints token by token, by rows, not {self.generate.paint.method}"
            )
        if max(self.generate.caption.samples, self.generate.paint.samples) > 1 and not self.package.scorer:
            raise ValueError(
                "package.scorer: the package chooses among samples as generate does; set it to true"
            )


def tokenized(split: str) -> TokenizedPictures:
    """Pictures of a split with their captions and tokens."""
    return TokenizedPictures(MANIFEST, split, TOKENS, MADE_BY)
