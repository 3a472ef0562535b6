"""Perceptual losses: that of the image generator and its encoders (X-LXMERT D.5, equation 5), and LPIPS (Zhang et al. 2018), which
AugVAE's code takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.model.errors import UserError
from diptych.model.pixels import to_unit_range

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# LPIPS: its own scaling of pixels, and the layers of VGG-16 after whose ReLUs it compares
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LPIPS_ENDS, LPIPS_CHANNELS = (4, 9, 16, 23, 30), (64, 128, 256, 512, 512)
LPIPS_EPSILON = 1e-10
VGG_FILES, LINEAR_FILES = ("vgg16.safetensors", "vgg16.pth"), ("lpips.safetensors", "lpips.pth")


class PyramidEncoder(Protocol):
    """The perceptual encoder E of X-LXMERT D.5: the detector, or any frozen network with a `pyramid`."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: float [n, 3, S, S] in 0..1 -> feature maps [n, C_k, H_k, W_k]."""
        ...


class ResNetEncoder(nn.Module):
    """ResNet-50's feature maps conv2_x to conv5_x (He et al. 2016), as D.5 takes them; frozen, in eval mode.

    weights: a state dict of torchvision's `resnet50`, trained on ImageNet: a local file (.pth, .safetensors).
    Raises UserError where the file is missing or is not one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path) -> None:
        from torchvision.models import resnet50

        super().__init__()
        network = resnet50()
        read_into(
            network,
            weights,
            "torchvision's ResNet-50 weights (ImageNet)",
            "the state dict of torchvision's resnet50",
        )
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: RGB float [n, 3, S, S] in 0..1 -> four maps at strides 4, 8, 16 and 32."""
        features, maps = self.stem((images - self.mean) / self.std), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


class LPIPS(nn.Module):
    """LPIPS 0.1 with VGG-16: squared distances of maps whose cells have unit length, weighed by channel, mean over cells, summed over
    five layers. Frozen, in eval mode.

    folder: with torchvision's `vgg16` trained on ImageNet (vgg16.pth or .safetensors) and LPIPS's weights of the channels, such as the
    package lpips brings as weights/v0.1/vgg.pth (lpips.pth or .safetensors).
    Raises UserError where a file is missing or is not one.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, folder: Path) -> None:
        from torchvision.models import vgg16

        super().__init__()
        features = vgg16().features
        linear = nn.ModuleDict(
            {f"lin{place}": _Weighing(channels) for place, channels in enumerate(LPIPS_CHANNELS)}
        )
        network = nn.Module()
        network.features = features
        read_into(
            network, _one_of(folder, VGG_FILES), "torchvision's VGG-16 weights (ImageNet)",
            "the state dict of torchvision's vgg16", "features.",
        )  # fmt: skip
        read_into(
            linear, _one_of(folder, LINEAR_FILES), "LPIPS's weights for VGG-16", "LPIPS's weights for VGG-16"
        )
        starts = (0, *LPIPS_ENDS)
        self.slices = nn.ModuleList(
            features[start:end] for start, end in zip(starts, LPIPS_ENDS, strict=False)
        )
        self.linear = linear
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, painted: Tensor, real: Tensor) -> Tensor:
        """Both float [n, 3, S, S] in -1..1 -> the mean distance; the gradient flows to `painted` only."""
        with torch.no_grad():
            targets = self._maps(real)
        distances = [
            weighing((found - target).square()).mean()
            for weighing, found, target in zip(
                self.linear.values(), self._maps(painted), targets, strict=True
            )
        ]
        return torch.stack(distances).sum()

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps, found = (images - self.shift) / self.scale, []
        for part in self.slices:
            maps = part(maps)
            found.append(maps / (maps.square().sum(1, keepdim=True).sqrt() + LPIPS_EPSILON))
        return found


class _Weighing(nn.Module):
    """A weight for each channel, called as LPIPS's files do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        return self.model(maps)


def read_into(network: nn.Module, file: Path, what: str, kind: str, prefix: str = "") -> None:
    """Read the weights of `network` from a file; names that do not begin with `prefix` are left. Raises UserError where it is missing,
    saying `what` to put there, or is not of the `kind`."""
    from diptych.features.weight_files import (
        UnreadableWeights,
        load_into,
        read_state_dict,
        without_prefix,
    )

    try:
        weights = without_prefix(read_state_dict(file)[0])
        load_into(network, {name: tensor for name, tensor in weights.items() if name.startswith(prefix)})
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; put {what} there, or set what is perceptual to models/detector"
        ) from None
    except UnreadableWeights as error:
        raise UserError(f"{file}: not {kind} ({error})") from None


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])


def is_detector(path: Path) -> bool:
    """Whether it is a detector's folder."""
    return (path / "config.json").is_file()


def read_encoder(path: Path, device: str) -> PyramidEncoder:
    """The detector where `path` is its folder, else ResNet-50 with the weights of that file."""
    from diptych.features.detector import load_detector

    return load_detector(path, device) if path.is_dir() else ResNetEncoder(path)


def read_perceptual_loss(path: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS where `path` is a folder with its files, else :func:`perceptual_loss` by what :func:`read_encoder` reads."""
    if path.is_dir() and not is_detector(path):
        return LPIPS(path).to(device)
    encoder = read_encoder(path, device)
    if isinstance(encoder, nn.Module):
        encoder.to(device)
    return partial(perceptual_loss, encoder)


def perceptual_loss(encoder: PyramidEncoder, painted: Tensor, real: Tensor, shift: int = 0) -> Tensor:
    """X-LXMERT D.5, equation 5: Huber distance of the encoder's feature maps, mean per map, summed over maps.

    painted and real: float [n, 3, S, S] in -1..1; the gradient flows to `painted` only. shift: see `shifted`.
    """
    painted, real = shifted(shift, painted, real)
    with torch.no_grad():
        targets = encoder.pyramid(to_unit_range(real))
    return feature_distance(encoder.pyramid(to_unit_range(painted)), targets)


def shifted(most: int, painted: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Both pictures [n, 3, S, S] moved alike, by 0 to `most` pixels down and right, drawn from torch's generator.

    What leaves on one side enters on the other. A network's strides always weigh the same pixels more, and a loss through
    it paints a grid where the pictures stand still.
    """
    if not most:
        return painted, real
    offsets = torch.randint(most + 1, (2,)).tolist()
    return torch.roll(painted, offsets, dims=(2, 3)), torch.roll(real, offsets, dims=(2, 3))


def feature_distance(found: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Huber distance (quadratic up to 1) of several feature maps: the mean of each, summed (D.5, equations 4, 5)."""
    return torch.stack(
        [functional.huber_loss(a.float(), b.float()) for a, b in zip(found, targets, strict=True)]
    ).sum()
