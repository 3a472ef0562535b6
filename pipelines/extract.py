"""Grid features of every picture (UMT 3.2), by Ray actors, into the feature store and linked from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.features.extraction.extract import ExtractConfig, extract_features
from diptych.features.importers.xlxmert_features import import_features
from diptych.features.manifest import read_manifest
from pipelines.runner.ray_cluster import encoders_of
from pipelines.runner.stage import FILE_FACTS, Stage, run

SCENES = Path("data/dataset/scenes.parquet")


@dataclass(frozen=True)
class ExtractParams(ExtractConfig):
    """source: models/detector, which sees the pictures, or a folder with features that X-LXMERT released, *_grid8.h5."""

    source: str


def main(stage: Stage, params: ExtractParams) -> None:
    """Extract or import what the store does not hold yet; pictures without features are listed and counted by kind."""
    released = sorted(Path(params.source).glob("*_grid8.h5"))
    scenes, store = read_manifest(SCENES), Path(stage.machine.feature_store)
    with stage.write("data/features") as folder:
        if released:
            counts = import_features(
                scenes, released, store, folder, params.part_size, params.max_failed_share, FILE_FACTS
            )
        else:
            workers, device = encoders_of(stage)
            counts = extract_features(
                scenes,
                SCENES,
                Path(params.source),
                store,
                folder,
                params,
                workers,
                stage.threads,
                device,
                stage.machine.features_at,
            )
    # how many were new depends on the store and not on the inputs, so it is printed and no metric
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run("extract", ExtractParams, main)
