"""A CLIP of our own or a pretrained one, in a stage's folder: what the scorer, the judge and their readers share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.eval.clip import (
    Clip,
    ClipConfig,
    ClipTrainingConfig,
    build_clip,
    load_clip,
    load_pretrained_clip,
    save_clip,
    train_clip,
)
from diptych.eval.errors import UserError
from diptych.features.files import sha256_of

if TYPE_CHECKING:
    from diptych.features.shards import ShardDataset
    from diptych.model.checkpoints import TrainingCheckpoints

POINTER = "pretrained.json"


@dataclass(frozen=True)
class PretrainedClip:
    """An open_clip model: its name ("ViT-B-32") and a local file with its weights. Nothing is downloaded."""

    model_name: str
    checkpoint: str


def write_clip(
    folder: Path,
    network: ClipConfig | PretrainedClip,
    training: ClipTrainingConfig | None,
    train: ShardDataset,
    seed: int,
    checkpoints: TrainingCheckpoints,
    device: str,
    description: str,
) -> list[dict[str, float]]:
    """Train a CLIP on `train` into `folder`, or write there which pretrained one it is; returns the history."""
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
    captions = [train.captions(index) for index in range(len(train))]
    clip = build_clip(network, captions, seed)
    history = train_clip(
        training, clip, lambda indices: train.images(indices, network.image_size), captions, checkpoints, device,
        description,
    )  # fmt: skip
    save_clip(clip, folder)
    return history


def pretrained_name(folder: Path) -> str | None:
    """open_clip's name of the pretrained CLIP in a stage's folder; None for one of our own."""
    if not (folder / POINTER).is_file():
        return None
    return json.loads((folder / POINTER).read_text(encoding="utf-8"))["model_name"]


def read_clip(folder: Path, device: str) -> Clip:
    """What `write_clip` wrote, in eval mode."""
    if (folder / POINTER).is_file():
        content = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        digest, pointer = content.pop("sha256"), PretrainedClip(**content)
        if sha256_of(Path(pointer.checkpoint)) != digest:
            raise UserError(
                f"{pointer.checkpoint}: not the weights that {folder / POINTER} names; run `dvc repro -f {folder.name}`"
            )
        return load_pretrained_clip(pointer.model_name, pointer.checkpoint, device)
    return load_clip(folder, device)
