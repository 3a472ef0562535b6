"""Pictures as BUTD reads them: the cells of the grid, or the detector's regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.features.pictures import DescribedPictures
from pipelines.measuring.shards import shards_of

if TYPE_CHECKING:
    from diptych.features.shards.reading import ShardDataset
    from pipelines.tables.item import TableItem

MANIFEST = Path("data/dataset/manifest.parquet")


def described(item: TableItem, features: str, split: str) -> ShardDataset | DescribedPictures:
    """Pictures of a split as the captioner reads them."""
    if features == "grid":
        return shards_of(split)
    return DescribedPictures(MANIFEST, split, Path(item.path("regions")), item.table.command)
