"""Small drawn pictures and checkpoints in memory for the tests."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

torch.set_num_threads(1)

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
LABELS = ("disc", "box")


def drawn_pictures(count: int, seed: int) -> tuple[torch.Tensor, list[list[str]], list[list[dict]]]:
    """Pictures uint8 [n, 3, 32, 32] of a large and sometimes a small shape, captions and objects."""
    generator = np.random.default_rng(seed)
    pictures, captions, objects = [], [], []
    for _ in range(count):
        picture = Image.new("RGB", (32, 32), (200, 200, 190))
        pen = ImageDraw.Draw(picture)
        left = bool(generator.integers(2))
        things = []
        for size, on_left in ((14, left), (7, not left))[: 1 + int(generator.random() < 0.8)]:
            label, color = LABELS[generator.integers(2)], list(COLORS)[generator.integers(3)]
            x, y = (
                (2 if on_left else 17) + int(generator.integers(-1, 2)),
                int(generator.integers(1, 31 - size)),
            )
            shape = pen.ellipse if label == "disc" else pen.rectangle
            shape((x, y, x + size, y + size), fill=COLORS[color])
            box = [float(x), float(y), float(x + size), float(y + size)]
            things.append({"bbox": box, "label": label, "attributes": [color]})
        main = things[0]
        where = "left" if left else "right"
        text = f"a {main['attributes'][0]} {main['label']} on the {where}"
        second = f" with a {things[1]['attributes'][0]} {things[1]['label']}" if len(things) > 1 else ""
        captions.append([f"{text}{second} .", f"there is {text}{second} ."])
        objects.append([*things, {"bbox": [0.0, 0.0, 32.0, 32.0], "label": "wall", "attributes": []}])
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(pictures)), captions, objects


class MemoryCheckpoints:
    """Keeps the last state; `stop_after` raises after that many saves, as a crash would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.state: dict | None = None
        self.saves, self.stop_after = 0, stop_after

    def load(self) -> dict | None:
        return copy.deepcopy(self.state)

    def save(self, state: dict) -> None:
        self.state = copy.deepcopy(state)
        self.saves += 1
        if self.saves == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def drawn() -> tuple[torch.Tensor, list[list[str]], list[list[dict]]]:
    """Pictures, captions and objects to train on."""
    return drawn_pictures(400, seed=0)


@pytest.fixture(scope="session")
def drawn_test() -> tuple[torch.Tensor, list[list[str]], list[list[dict]]]:
    """Others, to measure on."""
    return drawn_pictures(120, seed=1)


@pytest.fixture
def crashing_checkpoints() -> MemoryCheckpoints:
    """Checkpoints that crash the training after the tenth save."""
    return MemoryCheckpoints(stop_after=10)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file format of torch-fidelity's."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        weights = network.FeatureExtractorInceptionV3("x", ["2048"]).state_dict()
    # PyTorch's own drawing would let features fade to 0 over so many layers
    for weight in weights.values():
        if weight.dim() == 4:
            torch.nn.init.kaiming_normal_(weight)
    torch.save(weights, path)
    return path
