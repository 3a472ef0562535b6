"""Train the object detector whose grid features everything after it reads (UMT 3.2), or import a trained one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.features.detector import (
    DetectorConfig,
    DetectorTrainingConfig,
    average_precision,
    import_visual_genome,
    save_detector,
    train_detector,
)
from diptych.features.errors import UserError
from diptych.features.manifest import read_manifest, split_rows
from pipelines.runner.stage import Stage, run

SCENES = Path("data/dataset/scenes.parquet")


@dataclass(frozen=True)
class DetectorParams:
    """source: where the detector comes from, a dependency of the stage: the code that trains one here, or a checkpoint
    of the papers' detector, a `.pth` of vqa-maskrcnn-benchmark (nothing is downloaded).

    network: its sizes; training: its schedule and loss weights; both null for a checkpoint, which has its own.
    """

    source: str
    network: DetectorConfig | None
    training: DetectorTrainingConfig | None

    def __post_init__(self) -> None:
        imported = Path(self.source).suffix == ".pth"
        if [self.network is None, self.training is None] != [imported, imported]:
            raise UserError(
                "give network and training where the detector is trained, and null for both where source is a .pth"
            )


def main(stage: Stage, params: DetectorParams) -> None:
    """Train on the train split and measure mAP on the test split, or import the checkpoint."""
    if params.network is None or params.training is None:
        import_pretrained(stage, Path(params.source))
        return
    scenes = read_manifest(SCENES)
    train, test = (split_rows(scenes, split, SCENES) for split in ("train", "test"))
    detector, history = train_detector(
        params.network, params.training, train, SCENES, stage.seed, stage.device, stage.checkpoints()
    )
    with stage.write("models/detector") as folder:
        save_detector(detector, folder)
    stage.write_history("plots/detector.csv", history)
    stage.write_metrics("metrics/detector.json", average_precision(detector, test, SCENES, stage.device))


def import_pretrained(stage: Stage, checkpoint: Path) -> None:
    """Write the detector of a checkpoint. It has no history here; its metrics are its sizes."""
    with stage.write("models/detector") as folder:
        report = import_visual_genome(checkpoint, folder)
    print(report.summary())
    stage.write_history("plots/detector.csv", [])
    stage.write_metrics(
        "metrics/detector.json", {"parameters": report.parameters, "feature_dim": report.feature_dim}
    )


if __name__ == "__main__":
    run("detector", DetectorParams, main)
