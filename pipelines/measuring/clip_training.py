"""What the stages `scorer` and `judge` share: they train a CLIP, or adopt a pretrained one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.eval.errors import UserError
from diptych.eval.scorers.clip import ClipConfig, build_clip, load_pretrained_clip, save_clip
from diptych.eval.scorers.clip_training import ClipTrainingConfig, train_clip
from diptych.features.files import sha256_of
from pipelines.measuring.clips import POINTER, PretrainedClip
from pipelines.measuring.pictures import readable_pictures

if TYPE_CHECKING:
    from diptych.features.pictures import ManifestPictures
    from diptych.model.checkpoints import TrainingCheckpoints

MANIFEST = Path("data/dataset/manifest.parquet")


def training_pictures() -> ManifestPictures:
    """What scorer, judge and inspector are trained on: the train split's pictures that can be read, with captions and objects, and
    nothing that a detector or a codebook has a part in. How many may be missing is for the stage `extract` to say."""
    return readable_pictures(MANIFEST, "train", 1.0, "extract.max_failed_share")


def write_clip(
    folder: Path,
    network: ClipConfig | PretrainedClip,
    training: ClipTrainingConfig | None,
    train: ManifestPictures | None,
    seed: int,
    checkpoints: TrainingCheckpoints,
    device: str,
    description: str,
) -> list[dict[str, float]]:
    """Train a CLIP on `train` into `folder`, or write there which pretrained one it is, for which `train` may be None; returns the
    history."""
    if isinstance(network, PretrainedClip):
        load_pretrained_clip(network.model_name, network.checkpoint, "cpu")  # a wrong name should fail here
        folder.mkdir(parents=True)
        pointer = {**asdict(network), "sha256": sha256_of(Path(network.checkpoint))}
        (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n", encoding="utf-8")
        return []
    if training is None:
        raise UserError(
            f"params.yaml: {description}: a network that is not pretrained needs a training section"
        )
    assert train is not None
    captions = [train.captions(index) for index in range(len(train))]
    clip = build_clip(network, captions, seed)
    history = train_clip(
        training, clip, lambda indices: train.images(indices, network.image_size), captions, checkpoints, device,
        description,
    )  # fmt: skip
    save_clip(clip, folder)
    return history
