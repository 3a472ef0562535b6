from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.eval.errors import UserError
from diptych.eval.scorers.inspector import (
    Inspector,
    InspectorConfig,
    build_inspector,
    load_inspector,
    main_and_second,
    object_targets,
    save_inspector,
    train_inspector,
)
from diptych.eval.scorers.training import PictureTrainingConfig, spoilt

CONFIG = InspectorConfig(image_size=32, channels=(12, 24, 32))
TRAINING = PictureTrainingConfig(
    steps=150,
    batch_size=64,
    learning_rate=5e-3,
    weight_decay=0.01,
    warmup_steps=10,
    gradient_clip=5.0,
    seed=0,
    precision="float32",
    checkpoint_seconds=1e9,
    shift_pixels=1,
    brightness=0.1,
    blur=0.3,
    noise=0.02,
)


def thing(label: str, *attributes: str) -> dict:
    return {"label": label, "attributes": list(attributes)}


def test_learns_class_and_color_of_drawn_shapes(drawn, drawn_test, tmp_path: Path) -> None:
    pictures, _, objects = drawn
    inspector = build_inspector(CONFIG, objects, seed=0)
    assert inspector.classes == ("box", "disc") and inspector.colors == ("blue", "green", "red")
    history = train_inspector(TRAINING, inspector, lambda chosen: pictures[chosen], objects)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    test_pictures, _, test_objects = drawn_test
    accuracy = inspector.accuracy(test_pictures, test_objects)
    assert accuracy["main_color"] > 0.95 and accuracy["main_object"] > 0.8
    assert accuracy["second_color"] > 0.7
    # A picture of something else must not pass.
    swapped = inspector.accuracy(test_pictures.roll(1, 0), test_objects)
    assert swapped["main_object"] < 0.5
    save_inspector(inspector, tmp_path)
    loaded = load_inspector(tmp_path)
    assert loaded.accuracy(test_pictures, test_objects) == accuracy
    for part, logits in loaded(test_pictures[:4].float() / 255).items():
        assert torch.equal(logits, inspector(test_pictures[:4].float() / 255)[part])


def test_resumed_training_ends_with_equal_weights(drawn, crashing_checkpoints) -> None:
    pictures, _, objects = drawn
    config = dataclasses.replace(TRAINING, steps=20)
    whole = build_inspector(CONFIG, objects, seed=0)
    train_inspector(config, whole, lambda chosen: pictures[chosen], objects)
    crash = crashing_checkpoints
    with pytest.raises(KeyboardInterrupt):
        train_inspector(
            dataclasses.replace(config, checkpoint_seconds=0.0),
            build_inspector(CONFIG, objects, seed=0),
            lambda chosen: pictures[chosen],
            objects,
            crash,
        )
    resumed = build_inspector(CONFIG, objects, seed=7)
    crash.stop_after = None
    train_inspector(config, resumed, lambda chosen: pictures[chosen], objects, crash)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_pictures_are_spoilt_as_the_settings_say() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(64, 3, 8, 8)
    nothing = dataclasses.replace(TRAINING, shift_pixels=0, brightness=0.0, blur=0.0, noise=0.0)

    def spoil(**settings: float) -> torch.Tensor:
        return spoilt(pictures, dataclasses.replace(nothing, **settings), np.random.default_rng(0))

    assert torch.equal(spoil(), pictures)
    ratios = spoil(brightness=0.2) / pictures
    assert 0.8 <= float(ratios.min()) < 0.85 and 1.0 <= float(ratios[:, 0, 0, 0].max()) <= 1.2
    blurred = spoil(blur=0.5)
    untouched = (blurred == pictures).flatten(1).all(1)
    assert 0.3 < float(untouched.float().mean()) < 0.7
    assert float(blurred[~untouched].var()) < float(pictures[~untouched].var())
    noise = (spoil(noise=0.1) - pictures).flatten(1).std(1)
    assert float(noise.min()) < 0.02 and 0.07 < float(noise.max()) < 0.11


@pytest.mark.parametrize("wrong", [{"shift_pixels": -1}, {"noise": -0.1}, {"brightness": 1.0}, {"blur": 1.5}])
def test_impossible_spoiling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataclasses.replace(TRAINING, **wrong)


def test_the_second_object_differs_from_the_main_one_and_scenery_is_dropped() -> None:
    kites = [thing("kite", "red"), thing("kite", "red"), thing("sea")]
    assert main_and_second(kites) == [("kite", "red")]
    assert main_and_second([thing("kite", "red"), thing("boat", "blue"), thing("sea")])[1] == ("boat", "blue")
    targets = object_targets(
        [kites, [thing("boat", "pink"), thing("kite", "red")]], ["boat", "kite"], ["red"]
    )
    assert targets.tolist() == [[1, 0, -1, -1], [0, -1, 1, 0]]
    with pytest.raises(UserError, match="picture 1"):
        object_targets([kites, [thing("sea")]], ["kite"], ["red"])


def test_accuracy_counts_second_objects_where_there_are_any() -> None:
    class Fixed(Inspector):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            answer = {"main_class": 0, "main_color": 1, "second_class": 1, "second_color": 0}
            sizes = {"class": 2, "color": 2}
            return {
                part: torch.eye(sizes[part.split("_")[1]])[number].repeat(len(images), 1)
                for part, number in answer.items()
            }

    inspector = Fixed(CONFIG, ["boat", "kite"], ["blue", "red"])
    objects = [
        [thing("boat", "red"), thing("kite", "blue")],
        [thing("boat", "red"), thing("kite", "red")],
        [thing("boat", "blue")],
        [thing("kite", "red"), thing("kite", "red"), thing("sea")],
    ]
    pictures = torch.zeros(4, 3, 32, 32)
    accuracy = inspector.accuracy(pictures, objects)
    assert accuracy == {
        "main_class": 0.75,
        "main_color": 0.75,
        "second_class": 1.0,
        "second_color": 0.5,
        "main_object": 0.5,
        "second_object": 0.5,
    }
    right = inspector.inspect(pictures, objects)
    assert right["main_object"].tolist() == [True, True, False, False]
    assert right["has_second"].tolist() == [True, True, False, False]
    assert all(values.dtype == np.bool_ for values in right.values())
    assert math.isnan(inspector.accuracy(pictures[2:], objects[2:])["second_object"])


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json is missing"):
        load_inspector(tmp_path)
