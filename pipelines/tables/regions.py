"""Regions of every picture by the pipeline's detector, into the feature store, for BUTD as its paper has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.features.extraction.encoder import RegionLoader
from diptych.features.extraction.extract import encode_images
from diptych.features.manifest import read_manifest
from pipelines.extract import SCENES, ExtractParams
from pipelines.runner.ray_cluster import encoders_of
from pipelines.runner.stage import read_stage
from pipelines.tables.item import TableItem, run

if TYPE_CHECKING:
    from pipelines.tables.systems import SystemsTableParams

DETECTOR = Path("models/detector")


def main(item: TableItem, section: SystemsTableParams) -> None:
    """Write regions in the table's folder, linked from the store."""
    stage = item.stage
    _, params = read_stage("extract", ExtractParams)
    loader = RegionLoader(str(DETECTOR.absolute()), section.regions)
    store, (workers, device) = Path(stage.machine.feature_store), encoders_of(stage)
    with stage.write(item.path("regions")) as folder:
        counts = encode_images(
            read_manifest(SCENES), SCENES, loader, store, folder, params, workers, stage.threads, device,
            elsewhere=stage.machine.features_at,
        )  # fmt: skip
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run("regions", (), main)
