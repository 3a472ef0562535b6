"""A detector as a folder: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.features.errors import UserError
from diptych.features.files import atomic_path
from diptych.features.weight_files import UnreadableWeights, load_into, read_safetensors

FORMAT = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def write_folder(folder: Path, content: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write a detector's description and its weights. A reader never sees one without the other: the
    description goes first and comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    with atomic_path(folder / _WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
    with atomic_path(folder / _CONFIG) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **content}, indent=2) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_folder` wrote. Raises UserError when a file is missing, damaged or of another format."""
    for path in (folder / _CONFIG, folder / _WEIGHTS):
        if not path.is_file():
            raise UserError(f"{path}: no detector there; make one with `dvc repro detector`")
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = read_safetensors(folder / _WEIGHTS)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{folder}: the detector is damaged ({_CONFIG}: {error}); run `dvc repro -f detector`"
        ) from error
    except UnreadableWeights as error:
        raise UserError(
            f"{folder}: the detector is damaged ({_WEIGHTS}: {error}); run `dvc repro -f detector`"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{folder}: the detector is damaged ({_CONFIG} holds no object); run `dvc repro -f detector`"
        )
    if content.get("format") != FORMAT:
        raise UserError(
            f"{folder / _CONFIG}: detector format {content.get('format')}, this version reads {FORMAT}; "
            "run `dvc repro -f detector`"
        )
    return content, weights


def fill(network: nn.Module, weights: dict[str, Tensor], folder: Path, assign: bool = False) -> None:
    """Load a folder's weights into the network of its config.json; UserError where they do not fit.

    assign: take the tensors themselves instead of copying them, for a network on the meta device.
    """
    try:
        load_into(network, weights, assign)
    except UnreadableWeights as error:
        raise UserError(
            f"{folder}: {_WEIGHTS} does not fit {_CONFIG} ({error}); run `dvc repro -f detector`"
        ) from None
