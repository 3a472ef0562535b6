"""The detector: its grid features are RoIAlign's, it learns, resumes exactly and loads what it saved."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.features.datasets.toybox import GrammarConfig, SceneConfig, ToyboxConfig, build_toybox
from diptych.features.detector import (
    Detector,
    DetectorConfig,
    DetectorTrainingConfig,
    average_precision,
    load_detector,
    save_detector,
    train_detector,
)
from diptych.features.detector import training as detector_training
from diptych.features.detector.training import SceneDataset
from diptych.features.errors import UserError
from diptych.features.grid import grid_boxes

TINY = DetectorConfig(image_size=64, channels=(8, 16, 16, 16), pyramid_channels=16, feature_dim=32)


def training(steps: int) -> DetectorTrainingConfig:
    return DetectorTrainingConfig(
        steps=steps,
        batch_size=8,
        learning_rate=4e-3,
        weight_decay=1e-4,
        grid_class_weight=1.0,
        grid_attribute_weight=2.0,
        grid_box_weight=1.0,
        grid_size_weight=0.1,
        precision="float32",
        checkpoint_seconds=0,
    )


class Memory:
    """Checkpoints in memory that stop the run, as a kill would, once a step is saved."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.state: dict[str, Any] | None = None
        self.stop_after = stop_after

    def load(self) -> dict[str, Any] | None:
        return self.state

    def save(self, state: dict[str, Any]) -> None:
        self.state = {
            "model": {name: tensor.clone() for name, tensor in state["model"].items()},
            "optimizer": copy.deepcopy(state["optimizer"]),
            "step": state["step"],
            "history": list(state["history"]),
        }
        if state["step"] == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path]:
    folder = tmp_path_factory.mktemp("toybox")
    scenes = SceneConfig(0.1, 0.05, 0.7, 0.5, 0.1, 1.5)
    grammar = GrammarConfig(0.75, 0.9, 0.4, 0.6, 0.85, 0.4)
    config = ToyboxConfig(48, 0, 0, 0, 0, 64, scenes, grammar)
    return list(build_toybox(config, 0, folder)), folder / "scenes.parquet"


def test_grid_features_are_fc6_of_roi_align_on_the_grid(world: tuple[list[dict], Path]) -> None:
    rows, path = world
    detector = Detector(TINY, ["kite"], ["red"]).eval()
    images = SceneDataset(rows, path, detector).batch(range(2))[0]
    levels, shapes = detector._levels(images.float() / 255)
    pooled = detector.heads.box_roi_pool(levels, [grid_boxes(64, 64)] * 2, shapes)
    expected = detector.heads.box_head.features(pooled).view(2, 64, -1)
    torch.testing.assert_close(detector.grid_features(images), expected, atol=1e-5, rtol=1e-4)


def test_pictures_without_objects_are_background(world: tuple[list[dict], Path]) -> None:
    rows, path = world
    data = SceneDataset([rows[0], {**rows[1], "objects": []}], path, Detector(TINY, ["kite", "sea"], ["red"]))
    images, targets = data.batch(range(2))
    losses = data.detector.losses(images.float() / 255, targets)
    assert all(torch.isfinite(value) for value in losses.values())


def test_an_average_precision_of_nothing_is_left_out_and_said(
    world: tuple[list[dict], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, path = world
    detector = Detector(TINY, ["kite"], ["red"]).eval()
    bare = [{**row, "objects": []} for row in rows[:2]]
    assert average_precision(detector, bare, path, "cpu") == {}
    assert "no mAP: no picture has an object that the detector knows" in capsys.readouterr().err


def test_it_learns_to_find_what_it_is_shown(world: tuple[list[dict], Path]) -> None:
    rows, path = world
    few = rows[:8]
    before, _ = train_detector(TINY, training(1), few, path, seed=0, device="cpu")
    after, history = train_detector(TINY, training(150), few, path, seed=0, device="cpu")
    assert history[-1]["loss"] < 0.4 * history[0]["loss"]
    learnt = average_precision(after, few, path, "cpu")
    assert learnt["map50"] > 0.5 > average_precision(before, few, path, "cpu")["map50"]
    assert learnt["attribute_accuracy"] > 0.8


def test_a_killed_run_goes_on_to_the_same_weights(
    world: tuple[list[dict], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = world
    whole, curve = train_detector(TINY, training(6), rows, path, seed=3, device="cpu")
    checkpoints = Memory(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        train_detector(TINY, training(6), rows, path, seed=3, device="cpu", checkpoints=checkpoints)
    checkpoints.stop_after = None
    own, read = SceneDataset.batch, []
    monkeypatch.setattr(
        SceneDataset, "batch", lambda data, indices: read.append(indices) or own(data, indices)
    )
    resumed, resumed_curve = train_detector(
        TINY, training(6), rows, path, seed=3, device="cpu", checkpoints=checkpoints
    )
    assert (whole.weights_hash, curve) == (resumed.weights_hash, resumed_curve)
    assert len(read) == 3  # a fresh start would end with the same weights


def test_loading_gives_what_was_saved(world: tuple[list[dict], Path], tmp_path: Path) -> None:
    detector = Detector(TINY, ["kite", "sea"], ["red"]).eval()
    save_detector(detector, tmp_path)
    loaded = load_detector(tmp_path)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(loaded.grid_features(images), detector.grid_features(images))
    assert (loaded.labels, loaded.weights_hash) == (["kite", "sea"], detector.weights_hash)


def test_a_damaged_picture_is_left_out(world: tuple[list[dict], Path], tmp_path: Path) -> None:
    rows, path = world
    (tmp_path / "empty.jpg").touch()
    many = [{**row, "image_id": f"{n}"} for n, row in enumerate(rows * 3)]
    many[5] = {**many[5], "path": str(tmp_path / "empty.jpg")}
    data = SceneDataset(many, path, Detector(TINY, ["kite"], ["red"]))
    images, targets = data.batch(range(4, 8))
    assert (len(images), len(targets), data.unreadable) == (3, 3, {"5"})


def test_mistakes_end_in_one_message(world: tuple[list[dict], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json.*dvc repro detector"):
        load_detector(tmp_path / "missing")
    rows, path = world
    (tmp_path / "half.jpg").write_bytes((path.parent / rows[0]["path"]).read_bytes()[:500])
    with pytest.raises(
        UserError, match=r"1 of 1 images cannot be read.*half\.jpg: the image is damaged.*replace"
    ):
        damaged = [{**rows[0], "path": str(tmp_path / "half.jpg")}]
        train_detector(TINY, training(1), damaged, path, seed=0, device="cpu")
    bare = [{**row, "objects": []} for row in rows]
    with pytest.raises(UserError, match="needs boxes"):
        train_detector(TINY, training(1), bare, path, seed=0, device="cpu")


def test_pictures_of_unknown_objects_are_left_out(
    world: tuple[list[dict], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, path = world
    unknown = [{**rows[0], "objects": None}, rows[1], {**rows[2], "objects": []}]
    data = SceneDataset(unknown, path, Detector(TINY, ["kite"], ["red"]))
    assert [row["image_id"] for row in data.rows] == [row["image_id"] for row in rows[1:3]]
    assert "left out 1 of 3 pictures whose objects are unknown" in capsys.readouterr().err


def test_a_batch_of_damaged_pictures(
    world: tuple[list[dict], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured of it, and training takes the next picture that can be read."""
    rows, path = world
    (tmp_path / "empty.jpg").touch()
    monkeypatch.setattr(detector_training, "MAX_UNREADABLE_SHARE", 0.5)
    detector = Detector(TINY, ["kite"], ["red"]).eval()
    few = [rows[0], {**rows[1], "path": str(tmp_path / "empty.jpg")}]
    assert average_precision(detector, few, path, "cpu", batch_size=1).keys() <= {
        "map50",
        "attribute_accuracy",
    }
    data = SceneDataset(few, path, detector)
    batches = detector_training._prefetch(data, replace(training(4), batch_size=1), seed=0, first=0)
    assert all(torch.equal(images, data.image(0)[None]) for images, _ in batches) and data.unreadable


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 8), ("channels", (8, 0, 8, 8)), ("feature_dim", 0)]
)
def test_sizes_that_no_network_has_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least "):
        replace(TINY, **{name: value})
