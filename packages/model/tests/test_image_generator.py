"""The image generator and its training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.errors import UserError
from diptych.model.networks.image_generator import (
    ImageGenerator,
    ImageGeneratorConfig,
    load_image_generator,
    named_config,
    save_image_generator,
)
from diptych.model.objectives.perceptual import perceptual_loss
from diptych.model.training.image_generator import (
    ImageGeneratorTrainingConfig,
    object_emphasis,
    train_image_generator,
)

SMOKE = named_config("smoke")
# Every part of the paper's network at a size that tests can afford.
PAPER_IN_SMALL = named_config(
    "base",
    feature_dim=16,
    image_size=32,
    block_channels=(8, 8, 8),
    bottleneck_channels=16,
    modulation_channels=8,
    modulation_hidden=8,
)


def training_config(**changes: Any) -> ImageGeneratorTrainingConfig:
    config = ImageGeneratorTrainingConfig(
        seed=7,
        steps=6,
        batch_size=4,
        learning_rate=2e-3,
        warmup_share=0.1,
        clip_norm=1.0,
        reconstruction="l1",
        reconstruction_weight=1.0,
        perceptual_weight=0.0,
        object_weight=0.0,
        ema_decay=0.0,
        precision="float32",
        checkpoint_seconds=1e9,
    )
    return dataclasses.replace(config, **changes)


class Flags:
    """Images of 8x8 flat cells out of four colours; the code of a cell is its colour. Half of the images are
    flat."""

    colours = torch.tensor([[255, 40, 40], [20, 200, 60], [250, 250, 250], [30, 60, 220]], dtype=torch.uint8)

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(3)
        self.grids = np.where(
            np.arange(count)[:, None] % 2,
            random.integers(0, 4, (count, 64)),
            random.integers(0, 4, (count, 1)),
        )
        self.keys = [str(number) for number in range(count)]
        self.fail_at: int | None = None
        self.reads = 0

    def __len__(self) -> int:
        return len(self.grids)

    def codes(self, indices: Any) -> np.ndarray:
        self.reads += 1
        if self.reads == self.fail_at:
            raise KeyboardInterrupt
        return self.grids[indices].astype(np.int64)

    def images(self, indices: Any, size: int) -> Tensor:
        cells = self.colours[torch.from_numpy(self.grids[indices])].view(-1, 8, 8, 3).permute(0, 3, 1, 2)
        return cells.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)

    def meta(self, index: int) -> dict[str, Any]:
        return {"width": 64, "height": 64, "objects": [{"bbox": [8, 8, 24, 24], "attributes": ["red"]}]}


def codebook(feature_dim: int) -> Tensor:
    return torch.randn(4, feature_dim, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "config",
    [named_config("toybox"), named_config("toybox_128"), SMOKE, PAPER_IN_SMALL],
    ids=["toybox", "toybox_128", "smoke", "paper"],
)
def test_paints_pixels_between_minus_one_and_one(config: ImageGeneratorConfig) -> None:
    generator = ImageGenerator(config)
    images = generator(torch.randn(2, 64, config.feature_dim) * 10)
    assert images.shape == (2, 3, config.image_size, config.image_size)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert images.std() > 0.01


def test_paper_size() -> None:
    """D.1 says 1.7M parameters; its text leaves the bottleneck and hidden widths open, the released ones give
    this."""
    generator = ImageGenerator(named_config("base")).eval()
    with torch.no_grad():
        assert generator(torch.zeros(1, 64, 2048)).shape == (1, 3, 256, 256)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 1_771_417


def test_rows_of_the_grid_run_from_the_top_left() -> None:
    torch.manual_seed(0)
    generator = ImageGenerator(SMOKE).eval()
    grid = torch.zeros(1, 64, SMOKE.feature_dim)
    changed = grid.clone()
    changed[0, 7] = 1.0  # the top right cell
    difference = (generator(changed) - generator(grid)).abs().sum(1)[0]
    assert divmod(int(difference.argmax()), 64)[0] < 24
    assert divmod(int(difference.argmax()), 64)[1] >= 40


@pytest.mark.parametrize("config", [SMOKE, PAPER_IN_SMALL], ids=["smoke", "paper"])
def test_eval_mode_is_deterministic_and_the_gradient_reaches_every_cell(config: ImageGeneratorConfig) -> None:
    generator = ImageGenerator(config)
    for module in generator.modules():  # noise is silent at first
        if hasattr(module, "amount"):
            nn.init.ones_(module.amount)
    grid = torch.randn(2, 64, config.feature_dim, requires_grad=True)
    generator.train()
    assert torch.equal(generator(grid), generator(grid)) is not config.noise
    generator.eval()
    state = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    images = generator(grid)
    assert torch.equal(images, generator(grid))
    torch.testing.assert_close(
        images[:1], generator(grid[:1]), rtol=1e-4, atol=1e-5
    )  # no neighbour in the batch
    assert all(torch.equal(tensor, state[name]) for name, tensor in generator.state_dict().items())
    (gradient,) = torch.autograd.grad(images.square().sum(), grid)
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("config", [SMOKE, PAPER_IN_SMALL], ids=["smoke", "paper"])
def test_save_and_load(config: ImageGeneratorConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    generator = ImageGenerator(config)
    generator.fit_input(codebook(config.feature_dim))
    generator.to(memory_format=torch.channels_last)
    grid = torch.randn(2, 64, config.feature_dim)
    generator(grid)  # moves the spectral-norm state
    save_image_generator(tmp_path / "model", generator)
    loaded = load_image_generator(tmp_path / "model")
    assert loaded.config == config
    assert not loaded.training
    torch.testing.assert_close(loaded(grid), generator.eval()(grid), rtol=1e-4, atol=1e-5)


def test_bad_folders_and_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json is missing"):
        load_image_generator(tmp_path)
    save_image_generator(tmp_path, ImageGenerator(PAPER_IN_SMALL))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "depth": 3}))
    with pytest.raises(UserError, match="'depth' is unknown"):
        load_image_generator(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "block_channels": [8, 8, 16]}))
    with pytest.raises(UserError, match="does not fit"):
        load_image_generator(tmp_path)
    with pytest.raises(UserError, match="block_channels needs 4 numbers"):
        dataclasses.replace(SMOKE, block_channels=(32, 32))
    with pytest.raises(UserError, match="power of two"):
        dataclasses.replace(SMOKE, image_size=96)
    with pytest.raises(UserError, match="use one of smoke, toybox, toybox_128, base"):
        named_config("toybox_256")
    (tmp_path / "config.json").write_text(json.dumps({**values, "feature_dim": "16"}))
    with pytest.raises(UserError, match="config.json: feature_dim needs whole numbers from 1 on; got '16'"):
        load_image_generator(tmp_path)
    for changes, problem in (
        ({"noise": 1}, "noise must be true or false"),
        ({"block_channels": (8, 0, 8)}, "block_channels needs whole numbers"),
        ({"stem_groups": 3}, "must divide bottleneck_channels"),
        ({"modulation_kernel": 2}, "must be odd"),
    ):
        with pytest.raises(UserError, match=problem):
            dataclasses.replace(PAPER_IN_SMALL, **changes)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not valid JSON"):
        load_image_generator(tmp_path)


def test_learns_eight_images_and_keeps_the_colour_of_flat_ones() -> None:
    torch.manual_seed(0)
    data = Flags(8)
    config = dataclasses.replace(SMOKE, image_size=32, block_channels=(48, 32, 16), feature_dim=16)
    generator = ImageGenerator(config)
    history = train_image_generator(
        training_config(steps=200, batch_size=8, learning_rate=4e-3), generator, codebook(16), data, None
    ).history
    assert not generator.training
    assert [row["step"] for row in history] == list(range(20, 201, 20))
    assert set(history[0]) == {"step", "loss", "reconstruction", "learning_rate", "gradient_norm"}
    assert history[0]["loss"] > 0.2
    assert history[-1]["loss"] < 0.1
    indices = np.arange(8)
    with torch.no_grad():
        painted = generator(codebook(16)[torch.from_numpy(data.codes(indices))])
    real = data.images(indices, 32) / 127.5 - 1
    flat = real.std((2, 3)).amax(1) == 0
    assert flat.sum() == 4
    # Instance norm alone would turn every flat image into the same one.
    assert (painted.mean((2, 3)) - real.mean((2, 3)))[flat].abs().max() < 0.1


def test_of_features_it_learns_what_no_code_tells() -> None:
    """All pictures have the same codes and other features: a generator that reads features tells them apart, and only it."""

    class Shades(Flags):
        def codes(self, indices: Any) -> np.ndarray:
            return np.zeros((len(indices), 64), np.int64)

        def grid(self, indices: Any) -> np.ndarray:
            return codebook(SMOKE.feature_dim)[torch.from_numpy(self.grids[indices])].numpy().astype(np.float16)

    errors = {}
    for reads in ("codes", "features"):
        torch.manual_seed(0)
        generator, flags = ImageGenerator(dataclasses.replace(SMOKE, reads=reads)), Shades(8)
        config = training_config(steps=25, batch_size=8, learning_rate=1e-2)
        train_image_generator(config, generator, codebook(SMOKE.feature_dim), flags, None)
        grid = flags.grid(range(8)) if reads == "features" else codebook(SMOKE.feature_dim)[flags.codes(range(8))].numpy()
        real = flags.images(range(8), 64).float() / 127.5 - 1
        with torch.inference_mode():
            errors[reads] = float((generator(torch.from_numpy(grid).float()) - real).abs().mean())
    assert errors["features"] < 0.6 * errors["codes"], errors
    with pytest.raises(UserError, match="reads must be one of codes, features"):
        dataclasses.replace(SMOKE, reads="pixels")


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_resume_is_exact(ema_decay: float, tmp_path: Path) -> None:
    """With noise, spectral norm, shuffled batches, and the interruption in the second epoch."""
    config = training_config(steps=7, ema_decay=ema_decay, checkpoint_seconds=0.0, object_weight=1.0)

    def fresh() -> ImageGenerator:
        torch.manual_seed(2)
        return ImageGenerator(PAPER_IN_SMALL)

    undisturbed, resumed = fresh(), fresh()
    expected = train_image_generator(config, undisturbed, codebook(16), Flags(12), None).history

    data = Flags(12)
    data.fail_at = 5
    checkpoints = TrainingCheckpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_image_generator(config, fresh(), codebook(16), data, None, checkpoints)
    torch.manual_seed(99)
    history = train_image_generator(config, resumed, codebook(16), data, None, checkpoints).history
    assert data.reads == 5 + 3  # four steps done, the fifth failed, three were left
    assert history == expected
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class TwoMaps(nn.Module):
    """A stand-in for the detector."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2)
        self.seen: list[Tensor] = []

    def pyramid(self, images: Tensor) -> list[Tensor]:
        self.seen.append(images.detach())
        first = self.convolution(images) * 8
        return [first, first[:, :2, ::2, ::2]]


def test_perceptual_loss_is_equation_5() -> None:
    torch.manual_seed(0)
    detector = TwoMaps()
    painted, real = (torch.rand(2, 3, 16, 16) * 2 - 1 for _ in range(2))
    painted.requires_grad_()
    loss = perceptual_loss(detector, painted, real)
    expected = 0.0
    maps = zip(detector.pyramid((painted + 1) / 2), detector.pyramid((real + 1) / 2), strict=True)
    for found, target in maps:
        distance = (found - target).abs()
        assert distance.max() > 1 > distance.min()  # both branches of Huber
        expected += torch.where(distance <= 1, distance.square() / 2, distance - 0.5).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert all(images.min() >= 0 and images.max() <= 1 for images in detector.seen)
    (gradient,) = torch.autograd.grad(loss, painted)
    assert gradient.abs().sum() > 0
    assert perceptual_loss(detector, real, real).item() == 0


def test_perceptual_training_leaves_the_detector_alone() -> None:
    detector = TwoMaps()
    before = detector.convolution.weight.clone()
    history = train_image_generator(
        training_config(perceptual_weight=10.0),
        ImageGenerator(PAPER_IN_SMALL),
        codebook(16),
        Flags(8),
        detector,
    ).history
    row = history[0]
    assert row["loss"] == pytest.approx(row["reconstruction"] + 10 * row["perceptual"], rel=1e-5)
    assert torch.equal(detector.convolution.weight, before)
    assert detector.convolution.weight.grad is None


def test_cpus_train_in_float32_unless_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "_is_amx_tile_supported", lambda: True
    )  # where "auto" is bfloat16 elsewhere

    def dtype(precision: str) -> torch.dtype:
        with training_config(precision=precision).arithmetic(torch.device("cpu")):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert [dtype(name) for name in ("auto", "float32", "bfloat16")] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
    ]


def test_object_emphasis() -> None:
    scenery = {"bbox": [0.0, 0.0, 128.0, 64.0], "attributes": []}
    thing = {"bbox": [64.0, 0.0, 96.0, 32.0], "attributes": ["red"]}
    samples = [{"width": 128, "height": 64, "objects": objects} for objects in ([thing, scenery], [scenery])]
    weights = object_emphasis(samples, 32, object_weight=3.0)
    assert weights.shape == (2, 1, 32, 32)
    torch.testing.assert_close(weights.mean((2, 3)), torch.ones(2, 1))
    assert torch.equal(weights[1], torch.ones(1, 32, 32))
    inside = weights[0, 0, :16, 16:24]
    torch.testing.assert_close(inside, 4 * weights[0, 0, 20, 20].expand(16, 8))
    assert (weights[0, 0] == inside[0, 0]).sum() == 16 * 8


def test_not_finite_loss_too_little_data_and_a_foreign_codebook_are_errors() -> None:
    broken = codebook(16)
    broken[2] = torch.nan
    with pytest.raises(UserError, match="nan .* at step 0"):
        train_image_generator(training_config(), ImageGenerator(PAPER_IN_SMALL), broken, Flags(8), None)
    with pytest.raises(UserError, match="batch_size 4 is larger than the 3 training images"):
        train_image_generator(training_config(), ImageGenerator(PAPER_IN_SMALL), codebook(16), Flags(3), None)
    with pytest.raises(UserError, match="feature_dim is 16"):
        train_image_generator(training_config(), ImageGenerator(PAPER_IN_SMALL), codebook(12), Flags(8), None)
