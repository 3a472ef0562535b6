"""What is read, and how it is shared among splits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from diptych.features.datasets.question_files.config import QuestionFilesConfig
from diptych.features.errors import UserError


@dataclass(frozen=True)
class CocoSource:
    """One pair of annotation files. `split` is the split of its images, or "val/test": half of them each,
    drawn with the seed. `instances` may be null; without it there are no objects."""

    split: str
    images: Path
    captions: Path
    instances: Path | None

    def __post_init__(self) -> None:
        if self.split != "val/test":
            check_split(self.split)


@dataclass(frozen=True)
class CocoConfig:
    """Either `karpathy`, or where that is null `sources`, the official annotations.

    karpathy: dataset_coco.json; `images` is the folder that holds its file paths (train2014/, val2014/). It has no
    boxes: `instances` are COCO's files that do, empty for none. restval: whether its split "restval" counts as
    train (113,287 images, as many captioning papers train), or stays a split of its own that nothing is trained
    on (the papers train on 82,783, and paint what they sampled from all of val2014).
    limit: at most so many images a split, drawn with the seed; null for all.
    questions: files of questions about the images; null for none.
    """

    sources: list[CocoSource]
    karpathy: Path | None
    images: Path | None
    instances: list[Path]
    restval: bool
    limit: int | None
    questions: QuestionFilesConfig | None = None

    def __post_init__(self) -> None:
        if self.karpathy is None and not self.sources:
            raise UserError("give `karpathy` or `sources`")
        if self.karpathy is not None and self.images is None:
            raise UserError("`karpathy` needs `images`, the folder of train2014/ and val2014/")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1 or null, is {self.limit}")


def check_split(split: object) -> None:
    """Splits name shards: only what can be part of a file name. Raises UserError."""
    if not isinstance(split, str) or not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise UserError(f"split {split!r}: use letters, digits and _, or val/test for a split to be shared")
