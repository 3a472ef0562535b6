"""The image generator: an 8x8 grid of codebook vectors becomes pixels (X-LXMERT sections 4.2 and D.1).

A stack of residual blocks, each of which doubles the resolution. The grid enters three times: as the first
feature map, as the modulation of every instance norm (SPADE, Park et al. 2019), and so with every later
resolution again. One class covers the paper's network (`configs/image_generator_base.json`: 32 channels in
every block, modulation computed at each block's own resolution, bilinear upsampling, spectral norm) and the
frugal one for CPUs (`configs/image_generator_toybox.json`, and `toybox_128` for 128x128: wide where the map is
small, modulation computed once per cell, pixel shuffle).

`base` is X-LXMERT's released network and reads its checkpoint (`diptych.model.importers.image_generator`).
It has 1,771,417 parameters (D.1: 1.7M): 1.11M in the modulation of ten adaptive norms, 0.52M in the bottleneck,
0.10M in the residual path. Where the released layers differ from D.1 or say more, `base` follows them:

- noise is added, not multiplied, before the activation and with one amount per norm;
- spectral norm is on the residual path and the two convolutions after the bottleneck, not on the bottleneck,
  the modulation and the RGB outputs (D.1: "after each convolution layer");
- the bottleneck, 256 channels, ends in tanh; two 3x3 convolutions in four groups make the first feature map
  and a second map of 32 channels from it, and all norms are modulated by that second map, not by the grid;
- scale and shift have 128 hidden channels and the scale is added to 1;
- upsampling stands between activation and convolution, and each RGB output is drawn at full size at once
  (StyleGAN2's skips go from block to block).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from diptych.model.devices import on_cpu
from diptych.model.errors import UserError
from diptych.model.networks.config_files import CONFIG_FOLDER, config_text, read_config_file
from diptych.model.networks.winograd import LearningConvolution
from diptych.model.weight_files import misfit, read_tensors
from diptych.model.weights import unpack_weights

SIZES = ("smoke", "toybox", "toybox_128", "base")
GRID_SIZE = 8
GRID_CELLS = GRID_SIZE * GRID_SIZE
LEAKY_SLOPE = 0.2
NORM_EPSILON = 1e-5

UPSAMPLINGS = ("bilinear", "pixel_shuffle")
MODULATION_RESOLUTIONS = ("block", "grid")
READS = ("codes", "features")


@dataclass(frozen=True)
class ImageGeneratorConfig:
    """Everything that determines the network's shape.

    feature_dim: width D of a codebook vector (2048 at paper scale, 128 in Toybox).
    image_size: pixels per side S; 8 times a power of two; log2(S / 8) upsampling blocks follow from it.
    block_channels: channels of the first map at 8x8, then of each upsampling block's output;
        length log2(S / 8) + 1. Paper: 32 everywhere (D.1).
    bottleneck_channels: output of the 1x1 bottleneck over the grid.
    stem_groups: groups of the two 3x3 convolutions that follow the bottleneck (released network: 4).
    grid_blocks: residual blocks at 8x8 before the first upsampling; 0 in the paper. They let neighbouring
        cells agree on a shape where a convolution is cheapest.
    modulation_channels: channels of the map that all adaptive norms read.
    modulation_hidden: channels between that map and the scale and shift of one adaptive norm.
    modulation_kernel: kernel size of those convolutions (paper: 3).
    modulation_resolution: "block" upsamples the map and computes scale and shift at the block's resolution
        (paper); "grid" computes them at 8x8 and upsamples the result: the same receptive field in cells, far
        fewer operations.
    upsampling: "bilinear" (paper) or "pixel_shuffle", which makes four times the channels at the lower
        resolution.
    spectral_norm: on every convolution of the residual path (paper: true).
    noise: learned amount of spatial Gaussian noise after each adaptive norm, in training mode only.
    reads: what it is trained to turn into pixels: "codes", their codebook vectors (X-LXMERT), or "features", the grid features
        themselves, for a transformer that regresses those (LXMERT + Grid, X-LXMERT 4.2). The network is the same.
    """

    feature_dim: int
    image_size: int
    block_channels: tuple[int, ...]
    bottleneck_channels: int
    stem_groups: int
    grid_blocks: int
    modulation_channels: int
    modulation_hidden: int
    modulation_kernel: int
    modulation_resolution: str
    upsampling: str
    spectral_norm: bool
    noise: bool
    reads: str = "codes"

    def __post_init__(self) -> None:
        if not isinstance(self.block_channels, list | tuple):
            raise UserError(f"block_channels must be a list of numbers; got {self.block_channels!r}")
        object.__setattr__(self, "block_channels", tuple(self.block_channels))  # JSON knows lists only
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            smallest = 0 if field.name == "grid_blocks" else 1
            if field.name == "block_channels" or field.type == "int":
                for number in value if isinstance(value, tuple) else (value,):
                    if type(number) is not int or number < smallest:
                        raise UserError(
                            f"{field.name} needs whole numbers from {smallest} on; got {number!r}"
                        )
            if field.type == "bool" and not isinstance(value, bool):
                raise UserError(f"{field.name} must be true or false; got {value!r}")
        ratio = self.image_size / GRID_SIZE
        if ratio < 2 or not math.log2(ratio).is_integer():
            raise UserError(
                f"image_size must be {GRID_SIZE} times a power of two, from 16 on; got {self.image_size}"
            )
        if len(self.block_channels) != self.blocks + 1:
            raise UserError(
                f"block_channels needs {self.blocks + 1} numbers for image_size {self.image_size} "
                f"(8x8 and each of {self.blocks} upsampling blocks); got {list(self.block_channels)}"
            )
        if self.reads not in READS:
            raise UserError(f"reads must be one of {', '.join(READS)}; got {self.reads!r}")
        if self.upsampling not in UPSAMPLINGS:
            raise UserError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}; got {self.upsampling!r}")
        if self.modulation_resolution not in MODULATION_RESOLUTIONS:
            raise UserError(
                f"modulation_resolution must be one of {', '.join(MODULATION_RESOLUTIONS)}; "
                f"got {self.modulation_resolution!r}"
            )
        if self.modulation_kernel % 2 == 0:
            raise UserError(f"modulation_kernel must be odd; got {self.modulation_kernel}")
        for key in ("bottleneck_channels", "modulation_channels"):
            if getattr(self, key) % self.stem_groups:
                raise UserError(f"stem_groups ({self.stem_groups}) must divide {key} ({getattr(self, key)})")
        if self.block_channels[0] % self.stem_groups:
            raise UserError(f"stem_groups ({self.stem_groups}) must divide block_channels' first number")

    @property
    def blocks(self) -> int:
        """Number of upsampling blocks."""
        return int(math.log2(self.image_size // GRID_SIZE))


class AdaptiveInstanceNorm(nn.Module):
    """Instance norm whose scale and shift are functions of the grid: SPADE (X-LXMERT D.1, Park et al. 2019).

    Instance norm alone erases a channel that is constant over the image, such as the colour of a flat
    background; the shift, which is not normalised, puts it back.
    """

    def __init__(self, config: ImageGeneratorConfig, channels: int) -> None:
        super().__init__()
        kernel, padding = config.modulation_kernel, config.modulation_kernel // 2
        self.at_grid = config.modulation_resolution == "grid"
        self.shared = nn.Conv2d(config.modulation_channels, config.modulation_hidden, kernel, padding=padding)
        self.scale = nn.Conv2d(config.modulation_hidden, channels, kernel, padding=padding)
        self.shift = nn.Conv2d(config.modulation_hidden, channels, kernel, padding=padding)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """features [n, C, H, W], modulation [n, M, 8, 8] -> [n, C, H, W]."""
        size = features.shape[-2:]
        if not self.at_grid:
            modulation = resize(modulation, size)
        hidden = functional.relu(self.shared(modulation), inplace=True)
        scale, shift = 1 + self.scale(hidden), self.shift(hidden)
        if self.at_grid:
            scale, shift = resize(scale, size), resize(shift, size)
        return torch.addcmul(shift, normalise(features), scale)


class SpatialNoise(nn.Module):
    """Adds one Gaussian map to all channels, times a learned amount that starts at zero; training mode only.

    D.1 says "multiply"; the released network adds, as StyleGAN does, and so does this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        count, _, height, width = features.shape
        noise = torch.randn(count, 1, height, width, dtype=features.dtype, device=features.device)
        return features + self.amount.to(features.dtype) * noise


def _weight_normalisation(config: ImageGeneratorConfig) -> Callable[[nn.Module], nn.Module]:
    """What wraps each convolution of the residual path: spectral norm (Miyato et al. 2018), or nothing."""
    return spectral_norm if config.spectral_norm else lambda layer: layer


class ResidualBlock(nn.Module):
    """Norm, activation, upsampling, convolution, norm, activation, convolution; plus a 1x1 shortcut (D.1)."""

    def __init__(
        self, config: ImageGeneratorConfig, channels_in: int, channels_out: int, upsample: bool
    ) -> None:
        super().__init__()
        normalised = _weight_normalisation(config)
        self.upsample = upsample
        self.shuffle = upsample and config.upsampling == "pixel_shuffle"
        expanded = channels_out * 4 if self.shuffle else channels_out
        self.norm1 = AdaptiveInstanceNorm(config, channels_in)
        self.noise1 = SpatialNoise() if config.noise else nn.Identity()
        self.convolution1 = normalised(LearningConvolution(channels_in, expanded, shuffle=self.shuffle))
        self.norm2 = AdaptiveInstanceNorm(config, channels_out)
        self.noise2 = SpatialNoise() if config.noise else nn.Identity()
        self.convolution2 = normalised(LearningConvolution(channels_out, channels_out))
        self.shortcut = normalised(nn.Conv2d(channels_in, channels_out, 1))

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """features [n, C_in, H, W], modulation [n, M, 8, 8] -> [n, C_out, 2H, 2W], or [n, C_out, H, W]."""
        height, width = features.shape[-2:]
        size = torch.Size((height * 2, width * 2)) if self.upsample else features.shape[-2:]
        hidden = functional.leaky_relu(
            self.noise1(self.norm1(features, modulation)), LEAKY_SLOPE, inplace=True
        )
        hidden = self.convolution1(hidden if self.shuffle else resize(hidden, size))
        hidden = functional.leaky_relu(self.noise2(self.norm2(hidden, modulation)), LEAKY_SLOPE, inplace=True)
        # A 1x1 convolution and bilinear upsampling commute; this order costs a quarter.
        return self.convolution2(hidden) + resize(self.shortcut(features), size)


class ImageGenerator(nn.Module):
    """[n, 64, D] codebook vectors, row-major from the top left, to [n, 3, S, S] pixels in -1..1.

    X-LXMERT 4.2 and D.1. Every block contributes an RGB image; their sum, each upsampled to full size, goes
    through tanh. In eval mode the output is a deterministic, differentiable function of the grid:
    sequence-level training sends the gradient of the CLIP loss through it (UMT 4.2.2). The arguments need not
    be codebook vectors: a mixture of them (Gumbel-softmax) is as good.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: ImageGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        normalised = _weight_normalisation(config)
        first, *rest = config.block_channels
        # The released network reads raw features: mean 0, scale 1. See `fit_input`.
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.register_buffer("feature_scale", torch.ones(()))
        self.bottleneck = nn.Conv2d(config.feature_dim, config.bottleneck_channels, 1)
        groups = config.stem_groups
        self.stem = normalised(LearningConvolution(config.bottleneck_channels, first, groups))
        self.modulation = normalised(
            LearningConvolution(config.bottleneck_channels, config.modulation_channels, groups)
        )
        self.grid_blocks = nn.ModuleList(
            ResidualBlock(config, first, first, upsample=False) for _ in range(config.grid_blocks)
        )
        channels = [first, *rest]
        self.blocks = nn.ModuleList(
            ResidualBlock(config, before, after, upsample=True)
            for before, after in zip(channels, rest, strict=False)
        )
        self.to_rgb = nn.ModuleList(nn.Conv2d(after, 3, 3, padding=1) for after in rest)

    def fit_input(self, codebook: Tensor) -> None:
        """Fixes the input's shift and scale: the codebook [K, D] gets zero mean and unit mean variance.

        One scale for all dimensions, so that dimensions that hardly vary stay small. Call it once, before
        training. Sums are float64: in float32 they would depend on the number of threads, and a checkpoint on it.
        """
        mean = codebook.double().mean(0)
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_((codebook.double() - mean).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, grid: Tensor) -> Tensor:
        """grid: float [n, 64, D], of any precision -> float32 [n, 3, S, S] in -1..1."""
        bottleneck = torch.tanh(self.bottleneck(self._as_map(grid)))
        features, modulation = self.stem(bottleneck), self.modulation(bottleneck)
        for block in self.grid_blocks:
            features = block(features, modulation)
        full_size = torch.Size((self.config.image_size, self.config.image_size))
        image = torch.zeros(grid.shape[0], 3, *full_size, device=grid.device)
        for block, to_rgb in zip(self.blocks, self.to_rgb, strict=True):
            features = block(features, modulation)
            image = image + resize(to_rgb(features).float(), full_size)
        return torch.tanh(image)

    def _as_map(self, grid: Tensor) -> Tensor:
        """grid [n, 64, D] -> standardised [n, D, 8, 8]; ValueError for another shape."""
        if tuple(grid.shape[1:]) != (GRID_CELLS, self.config.feature_dim) or not grid.is_floating_point():
            raise ValueError(
                f"grid must be floats [n, {GRID_CELLS}, {self.config.feature_dim}], "
                f"got {grid.dtype} {list(grid.shape)}"
            )
        grid = (grid.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_scale
        # [n, 8, 8, D] seen as [n, D, 8, 8] is channels-last already: no copy
        return grid.unflatten(1, (GRID_SIZE, GRID_SIZE)).permute(0, 3, 1, 2)


class InstanceNorm(torch.autograd.Function):
    """Instance norm, float32 inside, by whole-map operations that leave channels-last maps channels-last.

    On a CPU torch's own copies such maps twice, and takes 2 to 5 times as long, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        centred = features - features.mean((2, 3), keepdim=True)
        factor = (centred.square().mean((2, 3), keepdim=True) + NORM_EPSILON).rsqrt_()
        normalised = centred.mul_(factor)
        ctx.save_for_backward(normalised, factor)
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        normalised, factor = ctx.saved_tensors
        along = (gradient * normalised).mean((2, 3), keepdim=True)
        centred = gradient - gradient.mean((2, 3), keepdim=True)
        return centred.addcmul_(normalised, along, value=-1).mul_(factor)


def normalise(features: Tensor) -> Tensor:
    """Instance norm without parameters: each channel of each image gets mean 0 and variance 1."""
    if not on_cpu(features):
        return functional.instance_norm(features, eps=NORM_EPSILON)
    return InstanceNorm.apply(features.float() if features.dtype == torch.bfloat16 else features)


def resize(features: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, pixel centres (`align_corners=False`); the identity where the size is right already."""
    if features.shape[-2:] == size:
        return features
    return functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


def named_config(name: str, **changes: Any) -> ImageGeneratorConfig:
    """The size `name` of `configs/` (smoke, toybox, toybox_128, base: the paper's), with `changes` such as
    feature_dim.

    Raises UserError for an unknown name or key.
    """
    if name not in SIZES:
        raise UserError(f"no image generator is named {name!r}; use one of {', '.join(SIZES)}")
    return read_config(CONFIG_FOLDER / f"image_generator_{name}.json", **changes)


def read_config(file: Path, **changes: Any) -> ImageGeneratorConfig:
    """The config in the JSON `file`, with `changes`; UserError naming the file, or the key, that is missing or wrong."""
    return read_config_file(ImageGeneratorConfig, file, "image generator", **changes)


def save_image_generator(folder: Path, generator: ImageGenerator) -> None:
    """Writes config.json and model.safetensors (float32, whatever the generator has; spectral-norm state
    included) into `folder`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().float().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config_text(generator.config), encoding="utf-8")


def load_image_generator(folder: Path, device: torch.device | str = "cpu") -> ImageGenerator:
    """Reads what `save_image_generator` wrote; eval mode, float32. UserError if a file is missing or does not
    fit."""
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise UserError(f"{file} is missing; run the image_generator stage or pull the model")
    generator = ImageGenerator(read_config(config_file))
    try:
        generator.load_state_dict(unpack_weights(read_tensors(weights_file)))
    except RuntimeError as error:
        raise UserError(f"{weights_file} does not fit {config_file}: {misfit(error)}") from None
    return generator.to(device).eval()
