"""The codebook by k-means, and the codes of every picture (UMT 3.2; X-LXMERT 4.1)."""

from __future__ import annotations

from pathlib import Path

from diptych.features.codebook import ClusterConfig, build_codebook
from diptych.features.manifest import read_manifest, split_rows
from diptych.features.store import FeatureReader
from pipelines.stage import Stage, run

SCENES = Path("data/dataset/scenes.parquet")


def main(stage: Stage, params: ClusterConfig) -> None:
    """Cluster the train split's cells, assign everybody's."""
    train_ids = {row["image_id"] for row in split_rows(read_manifest(SCENES), "train", SCENES)}
    with stage.write("data/codebook") as folder:
        metrics, curve = build_codebook(
            FeatureReader(Path("data/features")), train_ids, params, stage.threads, folder
        )
    stage.write_metrics("metrics/cluster.json", metrics)
    stage.write_history("plots/cluster.csv", curve)


if __name__ == "__main__":
    run("cluster", ClusterConfig, main)
