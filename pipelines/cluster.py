"""The codebook by k-means, and the codes of every picture (UMT 3.2; X-LXMERT 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diptych.features.codebook.clustering import ClusterConfig, build_codebook
from diptych.features.codebook.reading import load_cluster_sizes
from diptych.features.importers.centroids import import_centroids
from diptych.features.manifest import read_manifest, split_rows
from diptych.features.store import FeatureReader
from pipelines.runner.spread import spread
from pipelines.runner.stage import Stage, run

SCENES, FEATURES = Path("data/dataset/scenes.parquet"), Path("data/features")
CENTROIDS = (".npy", ".safetensors")


@dataclass(frozen=True)
class ClusterParams(ClusterConfig):
    """source: data/features, whose cells are clustered; or a file of centroids to take: X-LXMERT's released *.npy, or the
    codebook.safetensors of another run or model."""

    source: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source != str(FEATURES) and Path(self.source).suffix not in CENTROIDS:
            raise ValueError(
                f"source must be {FEATURES} or a file of centroids ({', '.join(CENTROIDS)}), is {self.source!r}"
            )


def main(stage: Stage, params: ClusterParams) -> None:
    """Cluster the train split's cells or take the given centroids, assign everybody's."""
    reader = FeatureReader(FEATURES)
    train_ids = {row["image_id"] for row in split_rows(read_manifest(SCENES), "train", SCENES)}
    with stage.write("data/codebook") as folder:
        deal = None if stage.machine.ray_address is None else partial(spread, stage)
        how = (stage.threads, folder, stage.device, stage.checkpoints(), deal)
        if params.source != str(FEATURES):
            metrics, curve = import_centroids(Path(params.source), params.k, reader, train_ids, *how)
        else:
            metrics, curve = build_codebook(reader, train_ids, params, *how)
        sizes = sorted(load_cluster_sizes(folder).tolist(), reverse=True)
    stage.write_metrics("metrics/cluster.json", metrics)
    stage.write_history("plots/cluster.csv", curve)
    stage.write_history(
        "plots/cluster_sizes.csv",
        [{"rank": rank, "cells": cells} for rank, cells in enumerate(sizes, start=1)],
    )


if __name__ == "__main__":
    run("cluster", ClusterParams, main)
