"""The comparison of image generators: equal lengths, and nothing trained twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from diptych.model.networks.image_generator import ImageGenerator, load_image_generator, named_config
from pipelines.commands import compare_image_generators
from pipelines.commands.compare_image_generators import trained, with_steps
from pipelines.image_generator import ImageGeneratorParams
from pipelines.runner.params import read_params, read_section
from pipelines.runner.stage import Stage

REPOSITORY = Path(__file__).parent.parent
PROVIDED = {"seed": 0, "precision": "float32", "checkpoint_seconds": 30.0}


@pytest.fixture
def params() -> ImageGeneratorParams:
    values = read_params(REPOSITORY / "params.yaml")
    return read_section(ImageGeneratorParams, "image_generator", values, provided=PROVIDED)


def test_another_length_keeps_the_share_of_the_warm_start(params: ImageGeneratorParams) -> None:
    assert params.training.game is not None
    half = with_steps(params, params.training.steps // 2).training
    assert half.steps == params.training.steps // 2
    assert half.game is not None
    assert half.game.warm_start_steps == round(params.training.game.warm_start_steps / 2)
    assert with_steps(params, params.training.steps) == params


def test_what_an_earlier_run_has_finished_is_not_trained_again(
    params: ImageGeneratorParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only training stands in: the generator is as it was made."""
    parts = []

    def train(stage: object, params: object, device: str, part: str) -> tuple[ImageGenerator, None]:
        parts.append(part)
        (tmp_path / part).mkdir(parents=True)  # its checkpoints
        return ImageGenerator(named_config("smoke")), None

    monkeypatch.setattr(compare_image_generators, "train", train)
    stage = cast(Stage, SimpleNamespace(device="cpu", training_folder=tmp_path))
    minutes = trained(stage, params, tmp_path / "comparison" / "adversarial")
    assert trained(stage, params, tmp_path / "comparison" / "adversarial") == minutes
    assert parts == ["comparison/adversarial"]
    assert load_image_generator(tmp_path / "comparison" / "adversarial" / "model").config == named_config(
        "smoke"
    )


def test_a_stale_network_is_not_compared(
    params: ImageGeneratorParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here
) -> None:
    monkeypatch.setattr(compare_image_generators, "is_current", lambda stage: False)
    monkeypatch.setattr(compare_image_generators, "compare", lambda *_: pytest.fail("compared"))
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    ended = run_here(tmp_path, compare_image_generators.main)
    assert ended.status == 1 and "run `dvc repro image_generator` first" in ended.stderr
