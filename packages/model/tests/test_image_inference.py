"""The image generator's fast copy paints the same pictures and has the same gradients."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figures import record
from diptych.model.inference import image_generator as image_inference
from diptych.model.inference.image_generator import InferenceImageGenerator
from diptych.model.networks.image_generator import (
    ImageGenerator,
    ImageGeneratorConfig,
    named_config,
    normalise,
)
from diptych.model.precision import autocast_context

PAPER_IN_SMALL = named_config(
    "base",
    feature_dim=16,
    image_size=64,
    block_channels=(8, 12, 8, 8),
    bottleneck_channels=16,
    modulation_channels=8,
    modulation_hidden=24,
)
CONFIGS = {
    "paper": PAPER_IN_SMALL,
    "kernel 1": dataclasses.replace(PAPER_IN_SMALL, modulation_kernel=1, grid_blocks=1),
    "kernel 5": dataclasses.replace(PAPER_IN_SMALL, modulation_kernel=5, upsampling="pixel_shuffle"),
    "paper by grid": dataclasses.replace(PAPER_IN_SMALL, modulation_resolution="grid"),
    "smoke": named_config("smoke"),
    "toybox_128": named_config("toybox_128"),
}


def trained(config: ImageGeneratorConfig) -> ImageGenerator:
    """In eval mode; biases and modulation as large as training makes them, every statistic away from its start."""
    torch.manual_seed(0)
    generator = ImageGenerator(config)
    generator.fit_input(torch.randn(20, config.feature_dim) * 3 + 2)
    for name, parameter in generator.named_parameters():
        if parameter.ndim > 1 and any(part in name for part in ("shared", "scale", "shift")):
            nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
        elif parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        generator(torch.randn(2, 64, config.feature_dim))  # moves the spectral norm's vectors
    return generator.eval()


def grids(config: ImageGeneratorConfig, count: int = 3) -> Tensor:
    return torch.randn(count, 64, config.feature_dim) * 3 + 2


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_same_pictures_and_gradients(config: ImageGeneratorConfig) -> None:
    # frozen, so that its convolutions are torch's: other rounding would turn a few activations on and off
    generator = trained(config).requires_grad_(False)
    fast = InferenceImageGenerator(generator)
    grid = grids(config).requires_grad_()
    expected, painted = generator(grid), fast(grid)
    assert painted.dtype == torch.float32 and expected.std() > 0.2
    torch.testing.assert_close(painted, expected, rtol=0, atol=2e-5)
    target = torch.rand_like(expected)
    wanted, found = (
        torch.autograd.grad((pictures - target).square().sum(), grid)[0] for pictures in (expected, painted)
    )
    assert (wanted.abs().sum(-1) > 0).all()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    with torch.no_grad():
        # convolutions of fewer rows may add in another order
        torch.testing.assert_close(fast(grid), painted, rtol=0, atol=1e-5)
        assert not fast(grid).requires_grad


def test_strips_and_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = trained(PAPER_IN_SMALL)
    grid = grids(PAPER_IN_SMALL, 5)
    heights = []
    for strip_bytes in (1 << 30, 5 * 64 * 24 * 4, 1):  # all rows; no divisor of 64; single rows
        monkeypatch.setattr(image_inference, "STRIP_BYTES", strip_bytes)
        monkeypatch.setattr(image_inference, "PIECE_BYTES", 2 * 4 * 8 * 64 * 64)
        fast = InferenceImageGenerator(generator)
        assert fast.piece == 2
        with torch.no_grad():
            torch.testing.assert_close(fast(grid), generator(grid), rtol=0, atol=2e-5)
        heights.append(fast.blocks[2].norm2._strip_height(torch.zeros(1, 25, 64 * 24)))
    assert heights[1:] == [5, 1] and heights[0] >= 64


def test_is_a_frozen_copy_that_stays_in_eval_mode() -> None:
    generator = trained(PAPER_IN_SMALL).train()
    fast = InferenceImageGenerator(generator)
    assert generator.training and not fast.train().training
    assert all(not module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert not any("parametrizations" in name for name in fast.state_dict())
    grid = grids(PAPER_IN_SMALL)
    before = fast(grid)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    assert torch.equal(fast(grid), before)
    with pytest.raises(
        ValueError, match=r"grid must be floats \[n, 64, 16\], got torch.float32 \[3, 64, 15\]"
    ):
        fast(grid[..., :15])
    with pytest.raises(ValueError, match="got torch.int64"):
        fast(torch.zeros(3, 64, dtype=torch.int64))


def test_dtype_follows_the_generator() -> None:
    generator = trained(PAPER_IN_SMALL).double()
    fast = InferenceImageGenerator(generator)
    assert {tensor.dtype for tensor in fast.state_dict().values()} == {torch.float64}
    grid = grids(PAPER_IN_SMALL).double()
    torch.testing.assert_close(fast(grid), generator(grid), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [PAPER_IN_SMALL, CONFIGS["smoke"]], ids=["paper", "smoke"])
def test_bfloat16_by_autocast(config: ImageGeneratorConfig) -> None:
    generator = trained(config)
    fast = InferenceImageGenerator(generator)
    grid = grids(config)
    with torch.no_grad(), autocast_context("cpu", "bfloat16"):
        rounded = fast(grid)
    assert rounded.dtype == torch.float32
    error = (rounded - generator(grid)).abs()
    assert 1e-4 < error.mean() < 0.05


def test_instance_norm_and_its_gradient() -> None:
    features = torch.randn(2, 5, 6, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    features.requires_grad_()
    torch.testing.assert_close(normalise(features), functional.instance_norm(features))
    assert normalise(features).is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(normalise, features)
    assert torch.equal(normalise(torch.full((1, 2, 3, 3), 7.0)), torch.zeros(1, 2, 3, 3))


def test_figures_of_other_benchmarks_stay(tmp_path: Path) -> None:
    record("model", {"train": 1.5, "generator": 1.0}, tmp_path)
    record("model", {"generator": 2.0, "bf16": None}, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()) == {"train": 1.5, "generator": 2.0, "bf16": None}
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]
