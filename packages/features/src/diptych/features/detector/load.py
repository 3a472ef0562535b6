"""From a detector's folder to the network it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.features.detector import network, visual_genome
from diptych.features.detector.folder import read_folder
from diptych.features.detector.grid_detector import PyramidGridDetector
from diptych.features.errors import UserError

BACKENDS = ("torchvision", "detectron2")


def load_detector(
    folder: Path | str, device: str | torch.device = "cpu", backend: str = "torchvision"
) -> PyramidGridDetector:
    """Read a detector folder. The detector is frozen and in evaluation mode.

    backend: whose building blocks run a Visual Genome detector, "torchvision" or "detectron2"; the features
    are the same within rounding. Raises UserError when a file is missing, damaged or of another format, or
    the backend is unknown, not installed or not one of this detector's.
    """
    folder = Path(folder)
    content, weights = read_folder(folder)
    try:
        detector = _build(content, weights, folder, backend)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'}: not a detector's description ({error}); run `dvc repro -f detector`"
        ) from error
    detector.to(device).eval().requires_grad_(False)
    return detector


def _build(content: dict[str, Any], weights: dict[str, Tensor], folder: Path, backend: str) -> Any:
    if backend not in BACKENDS:
        raise UserError(f"detector backend '{backend}' is unknown; choose one of {', '.join(BACKENDS)}")
    # Folders from before there were two kinds do not say which they are.
    architecture = content.get("architecture", network.ARCHITECTURE)
    if architecture == visual_genome.ARCHITECTURE:
        if backend == "detectron2":
            try:
                from diptych.features.detector import detectron2_backend
            except ImportError as error:
                raise UserError(
                    f"detector backend 'detectron2' needs the package detectron2, which is not installed or does "
                    f"not fit this PyTorch ({error}); build it from github.com/facebookresearch/detectron2, or set "
                    "extract.backend to torchvision"
                ) from error
            return detectron2_backend.build_detector(content, weights, folder)
        return visual_genome.build_detector(content, weights, folder)
    if architecture != network.ARCHITECTURE:
        raise UserError(f"{folder / 'config.json'}: unknown detector architecture '{architecture}'")
    if backend != "torchvision":
        raise UserError(
            f"{folder}: a detector trained here runs on the torchvision backend alone; set "
            "extract.backend to torchvision"
        )
    return network.build_detector(content, weights, folder)
