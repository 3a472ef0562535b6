"""Grid features of every picture (UMT 3.2), by Ray actors, into the feature store and linked from there."""

from __future__ import annotations

from pathlib import Path

from diptych.features.extract import ExtractConfig, extract_features
from diptych.features.manifest import read_manifest
from pipelines.stage import Stage, run

SCENES = Path("data/dataset/scenes.parquet")


def main(stage: Stage, params: ExtractConfig) -> None:
    """Extract what the store does not hold yet; pictures that cannot be read are listed and counted."""
    with stage.write("data/features") as folder:
        counts = extract_features(
            read_manifest(SCENES),
            SCENES,
            Path("models/detector"),
            Path(stage.machine.feature_store),
            folder,
            params,
            stage.workers,
            stage.threads,
            stage.device,
        )
    # how many were new depends on the store and not on the inputs, so it is printed and no metric
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run("extract", ExtractConfig, main)
