"""Train the object detector whose grid features everything after it reads (UMT 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.features.detector import (
    DetectorConfig,
    DetectorTrainingConfig,
    average_precision,
    save_detector,
    train_detector,
)
from diptych.features.manifest import read_manifest, split_rows
from pipelines.stage import Stage, run

SCENES = Path("data/dataset/scenes.parquet")


@dataclass(frozen=True)
class DetectorParams:
    """network: its sizes; training: its schedule and loss weights."""

    network: DetectorConfig
    training: DetectorTrainingConfig


def main(stage: Stage, params: DetectorParams) -> None:
    """Train on the train split, measure mAP on the test split."""
    scenes = read_manifest(SCENES)
    train, test = (split_rows(scenes, split, SCENES) for split in ("train", "test"))
    detector, history = train_detector(
        params.network, params.training, train, SCENES, stage.seed, stage.device, stage.checkpoints()
    )
    with stage.write("models/detector") as folder:
        save_detector(detector, folder)
    stage.write_history("plots/detector.csv", history)
    stage.write_metrics("metrics/detector.json", average_precision(detector, test, SCENES, stage.device))


if __name__ == "__main__":
    run("detector", DetectorParams, main)
