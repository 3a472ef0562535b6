"""A network in a folder of its own: config.json beside model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from diptych.eval.errors import UserError
from diptych.eval.weight_files import UnreadableWeights, load_into, read_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_description(folder: Path, form: str, beside: tuple[str, ...]) -> dict[str, Any]:
    """The content of a folder's config.json.

    form: the format it must name. beside: other files that must be there.
    Raises UserError where a file is missing, or config.json damaged or of another format.
    """
    for name in (CONFIG, *beside):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; run the stage that writes {folder}")
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy it again, or train it again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != form:
        raise UserError(f"{path}: format is {found}, expected {form}; train it again")
    return content


def fill(network: nn.Module, folder: Path) -> None:
    """Load a folder's model.safetensors into the network of its config.json. UserError where that fails."""
    path = folder / WEIGHTS
    try:
        tensors = read_safetensors(path)
    except UnreadableWeights as error:
        raise UserError(f"{path}: {error}") from None
    try:
        load_into(network, tensors)
    except UnreadableWeights as error:
        raise UserError(
            f"{path} does not fit {folder / CONFIG} ({error}); copy both again, or train it again"
        ) from None
