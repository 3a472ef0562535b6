"""The perceptual loss of the image generator and its encoders (X-LXMERT D.5, equation 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.model.errors import UserError
from diptych.model.pixels import to_unit_range

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

        from diptych.features.weight_files import (
            UnreadableWeights,
            load_into,
            read_state_dict,
            without_prefix,
        )

        super().__init__()
        network = resnet50()
        try:
            load_into(network, without_prefix(read_state_dict(weights)[0]))
        except FileNotFoundError:
            raise UserError(
                f"{weights} is missing; put torchvision's ResNet-50 weights (ImageNet) there, or set "
                "image_generator.perceptual_encoder to models/detector"
            ) from None
        except UnreadableWeights as error:
            raise UserError(f"{weights}: not the state dict of torchvision's resnet50 ({error})") from None
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
