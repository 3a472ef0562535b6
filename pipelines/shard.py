"""WebDataset shards that all training reads: features, codes, captions and pictures side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.features.manifest import read_manifest
from diptych.features.ranges import check_at_least
from diptych.features.shards.writing import write_shards
from pipelines.runner.stage import Stage, run

MANIFEST = Path("data/dataset/manifest.parquet")


@dataclass(frozen=True)
class ShardParams:
    """shard_size: samples in one tar."""

    shard_size: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "shard_size")


def main(stage: Stage, params: ShardParams) -> None:
    """Write every split's shards and their index; after an interruption, those that are missing."""
    with stage.resumable_folder("data/shards") as folder:
        counts = write_shards(
            read_manifest(MANIFEST),
            MANIFEST,
            Path("data/features"),
            Path("data/codebook"),
            folder,
            params.shard_size,
        )
    print(", ".join(f"{split}: {count}" for split, count in counts.items()))


if __name__ == "__main__":
    run("shard", ShardParams, main)
