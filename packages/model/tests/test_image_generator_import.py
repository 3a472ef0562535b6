"""Import of X-LXMERT's image generator: every tensor used, the same pictures, one message for what does not fit.

``data/image_generator_names.txt`` are the names and shapes that the released code itself gives its checkpoint, at a
small size; the pictures are compared with the independent network of ``benchmarks/reference_image_generator.py``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_checkpoints import run_import
from torch import Tensor, nn

from benchmarks.reference_image_generator import ReferenceImageGenerator
from diptych.model.errors import UserError
from diptych.model.importers.image_generator import OURS_ONLY, import_image_generator, released_name
from diptych.model.networks.image_generator import ImageGenerator, load_image_generator, named_config

NAMES = Path(__file__).parent / "data" / "image_generator_names.txt"
CONFIG = named_config(
    "base",
    feature_dim=12,
    image_size=32,
    block_channels=(8, 8, 8),
    bottleneck_channels=16,
    modulation_channels=8,
)


def trained_reference(seed: int = 0) -> ReferenceImageGenerator:
    """Random weights, biases and noise amounts; the spectral norm's vectors after some power iterations."""
    torch.manual_seed(seed)
    reference = ReferenceImageGenerator(CONFIG).train()
    for name, parameter in reference.named_parameters():
        nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
        if "to_RGB" in name:
            nn.init.normal_(parameter, std=0.03)
    with torch.no_grad():
        for _ in range(2):
            reference(torch.randn(2, 64, CONFIG.feature_dim))
    return reference.eval()


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "G_60.pth")
    return folder / "G_60.pth"


def test_names_and_shapes_are_the_released_ones() -> None:
    released = {}
    for line in NAMES.read_text().splitlines():
        name, *shape = line.split()
        released[name] = tuple(map(int, shape))
    ours = {
        released_name(name): tuple(tensor.shape)
        for name, tensor in ImageGenerator(CONFIG).state_dict().items()
        if name not in OURS_ONLY
    }
    assert ours == released
    assert {
        name: tuple(tensor.shape) for name, tensor in trained_reference().state_dict().items()
    } == released


@pytest.mark.parametrize("module", ["", "module.", "_orig_mod."])
def test_paints_what_the_original_paints(module: str, tmp_path: Path) -> None:
    reference = trained_reference()
    state = {module + name: tensor.clone() for name, tensor in reference.state_dict().items()}
    imported = import_image_generator(saved(tmp_path, state), CONFIG)
    assert sorted(imported.report.used) == sorted(state)
    assert not imported.report.unused and not imported.report.initialised
    assert not imported.generator.training
    grid = torch.randn(3, 64, CONFIG.feature_dim) * 2
    with torch.no_grad():
        expected, painted = reference(grid), imported.generator(grid)
        noisy = reference(grid, noise=True)
    assert expected.std() > 0.1 and (expected.abs() > 0.99).float().mean() < 0.2  # not all black and white
    torch.testing.assert_close(painted, expected, rtol=0, atol=1e-5)
    assert (noisy - expected).abs().max() > 0.1  # amounts of noise were imported, and are silent in eval mode
    assert torch.equal(imported.generator.blocks[1].noise2.amount, reference.resblocks[1].noise2.weight)
    weights = {name: tensor.clone() for name, tensor in imported.generator.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(imported.generator(grid), painted)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in imported.generator.state_dict().items())


def test_half_precision_checkpoints_and_grids_become_float32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in trained_reference().state_dict().items()}
    generator = import_image_generator(saved(tmp_path, state), CONFIG).generator
    assert {tensor.dtype for tensor in generator.state_dict().values()} == {torch.float32}
    grid = torch.randn(1, 64, CONFIG.feature_dim).half()
    with torch.no_grad():
        assert generator(grid).dtype == torch.float32
        assert torch.equal(generator(grid), generator(grid.double()))


def test_what_does_not_fit_is_one_message(tmp_path: Path) -> None:
    state = dict(trained_reference().state_dict())

    def refused(content: Any, **changes: Any) -> str:
        with pytest.raises(UserError, match="G_60.pth") as caught:
            import_image_generator(saved(tmp_path, content), dataclasses.replace(CONFIG, **changes))
        return str(caught.value)

    message = refused(state, image_size=64, block_channels=(8, 8, 8, 8))
    assert "image_size 64" in message
    assert "resblocks.2." in message and "are missing" in message
    assert "give the checkpoint's own size" in message
    assert "are unknown (resblocks.1." in refused(state, image_size=16, block_channels=(8, 8))
    message = refused(state, feature_dim=10)
    assert "D = 10" in message
    assert (
        "1 tensors have another shape (bottleneck_emb.0.weight [16, 12, 1, 1], not [16, 10, 1, 1])" in message
    )
    assert "1 tensors are unknown (optimizer)" in refused({**state, "optimizer": torch.zeros(1)})
    without = {name: tensor for name, tensor in state.items() if name != "learned_init_conv.0.weight_u"}
    assert "1 tensors are missing (learned_init_conv.0.weight_u)" in refused(without)
    broken = {**state, "to_RGB_blocks.0.conv.bias": torch.full((3,), torch.nan)}
    assert "NaN or infinite weights (to_RGB_blocks.0.conv.bias)" in refused(broken)
    quantized = {**state, "to_RGB_blocks.0.conv.bias": torch.ones(3, dtype=torch.int8)}
    assert "not floating-point numbers (to_RGB_blocks.0.conv.bias)" in refused(quantized)
    assert "not a dict of tensors (epoch)" in refused({**state, "epoch": 60})
    assert "holds a list" in refused([1, 2])
    assert "not a readable checkpoint" in refused(
        {"weights": Path("x")}
    )  # more than tensors: nothing of it is run
    assert "upsampling 'bilinear', the size you gave has 'pixel_shuffle'" in refused(
        state, upsampling="pixel_shuffle"
    )
    assert "modulation_resolution 'block'" in refused(state, modulation_resolution="grid")
    with pytest.raises(UserError, match="no such checkpoint"):
        import_image_generator(tmp_path / "G_61.pth", CONFIG)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = trained_reference()
    path = saved(tmp_path, reference.state_dict())
    size = tmp_path / "small.json"
    size.write_text(json.dumps(dataclasses.asdict(CONFIG)))

    def run(out: str, *options: str) -> int:
        return run_import(["image-generator", str(path), str(tmp_path / out), "--size", str(size), *options])

    assert run("generator") == 0
    assert "tensors used, 0 left out" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "generator" / "import.json").read_text())["used"]) == 66
    loaded = load_image_generator(tmp_path / "generator")
    assert loaded.config == CONFIG
    grid = torch.randn(2, 64, CONFIG.feature_dim)
    direct: Tensor = import_image_generator(path, CONFIG).generator(grid)
    assert torch.equal(loaded(grid), direct)

    np.save(tmp_path / "centroids.npy", np.zeros((5, 12), np.float32))
    assert run("fitting", "--codebook", str(tmp_path / "centroids.npy")) == 0
    np.save(tmp_path / "centroids.npy", np.zeros((5, 9), np.float32))
    capsys.readouterr()
    assert run("other", "--codebook", str(tmp_path / "centroids.npy")) == 1
    assert "D = 9" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert run_import(["image-generator", str(path), str(tmp_path / "other"), "--size", "huge"]) == 1
    assert "huge" in capsys.readouterr().err
