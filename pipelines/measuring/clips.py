"""A CLIP of our own or a pretrained one, in the folder of the stage `scorer` or `judge`, for its readers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diptych.eval.errors import UserError
from diptych.eval.scorers.clip import (
    Clip,
    load_clip,
    load_pretrained_clip,
)
from diptych.features.files import sha256_of

POINTER = "pretrained.json"


@dataclass(frozen=True)
class PretrainedClip:
    """An open_clip model: its name ("ViT-B-32") and a local file with its weights. Nothing is downloaded."""

    model_name: str
    checkpoint: str


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
