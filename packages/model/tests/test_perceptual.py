"""LPIPS over its files' names, against a restatement; which file is which perceptual loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.objectives.perceptual import LPIPS, read_perceptual_loss

# VGG-16's convolutions as torchvision numbers its layers, by the maps that they make
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names of torchvision's vgg16 and of LPIPS's vgg.pth."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    before = 3
    for numbers, width in zip(SLICES, WIDTHS, strict=True):
        for number in numbers:
            weights[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=generator) / (3 * before**0.5)
            weights[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
            before = width
    weights["classifier.0.weight"] = torch.zeros(3)  # which is left
    place = tmp_path_factory.mktemp("lpips")
    torch.save(weights, place / "vgg16.pth")
    torch.save({f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for n, width in enumerate(WIDTHS)}, place / "lpips.pth")
    return place


def restated(folder: Path, one: Tensor, other: Tensor) -> float:
    """LPIPS of two pictures, as Zhang et al. 2018 describe it (equation 1), in float64."""
    vgg, linear = (torch.load(folder / name, weights_only=True) for name in ("vgg16.pth", "lpips.pth"))
    sides = []
    for picture in (one, other):
        maps = (picture.double() - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        found = []
        for place, numbers in enumerate(SLICES):
            maps = F.max_pool2d(maps, 2) if place else maps
            for number in numbers:
                weight, bias = (vgg[f"features.{number}.{part}"].double() for part in ("weight", "bias"))
                maps = F.conv2d(maps, weight, bias, padding=1).relu()
            found.append(maps / (maps.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        sides.append(found)
    total = 0.0
    for place, (a, b) in enumerate(zip(*sides, strict=True)):
        weighed = (linear[f"lin{place}.model.1.weight"].double() * (a - b) ** 2).sum(1)
        total += float(weighed.mean())
    return total


def test_it_is_lpips(folder: Path) -> None:
    loss = read_perceptual_loss(folder, "cpu")
    assert isinstance(loss, LPIPS)
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    assert float(loss(one, other)) == pytest.approx(restated(folder, one, other), rel=1e-5)
    assert float(loss(one, one)) == 0
    one.requires_grad_()
    other.requires_grad_()
    loss(one, other).backward()
    assert one.grad is not None and one.grad.abs().max() > 0 and other.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_missing_and_foreign_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vgg16.pth is missing; put torchvision's VGG-16 weights"):
        read_perceptual_loss(tmp_path, "cpu")
    (tmp_path / "vgg16.pth").symlink_to(folder / "vgg16.pth")
    with pytest.raises(UserError, match=r"lpips.pth is missing; put LPIPS's weights for VGG-16"):
        LPIPS(tmp_path)
    torch.save({"lin0.model.1.weight": torch.rand(1, 64, 1, 1)}, tmp_path / "lpips.pth")
    with pytest.raises(UserError, match=r"lpips.pth: not LPIPS's weights for VGG-16"):
        LPIPS(tmp_path)
