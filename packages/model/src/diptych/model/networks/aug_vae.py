"""AugVAE, L-Verse's image tokenizer (L-Verse 3.3, figure 2): pixels to a grid of codes and back.

Encoders halve a picture level by level, decoders double it again. Trained on all levels (AugVAE-ML), every level is quantized by the
same codebook, which so learns patterns of all sizes; a decoder reads its level's codes beside what the level below has made. AugVAE-SL
is made from it (:func:`single_level`): one level alone is quantized, encoders and decoders below it go, and where a decoder read two
maps a 1x1 convolution makes both of one.

The layers are those of the released checkpoints (`diptych.model.importers`): residual blocks of group norm, swish and 3x3
convolutions, no attention. Letters in shape comments: n pictures, S pixels a side, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.networks.config_files import CONFIG_FOLDER, config_text, read_config_file
from diptych.model.networks.vector_quantizer import Quantized, VectorQuantizer
from diptych.model.networks.winograd import LearningConvolution
from diptych.model.weight_files import misfit, read_tensors
from diptych.model.weights import unpack_weights

SIZES = ("smoke", "toybox", "base")
NORM_EPSILON = 1e-6
# Factors of the channels at the resolutions that a level passes, the finest first: pixels to the first level are halved twice.
FIRST_LEVEL, FURTHER_LEVELS = (1, 2, 4), (2, 4)


@dataclass(frozen=True)
class AugVAEConfig:
    """Shape of an :class:`AugVAE`; the released one's (`base`) in brackets.

    Attributes:
        image_size: pixels a side [256].
        levels: of the multi-level network [4]: grids of a quarter of ``image_size``, an eighth, ...
        coded_level: the level that alone is quantized, counted from 0, the finest [1: 32x32]; None: all of them.
        channels: of the finest maps [128]; coarser ones have up to four times as many.
        width: of the maps between levels [256].
        codebook_size: number of codes, K [8,192].
        code_dim: width of a code, D [256].
        residual_blocks: at each resolution [2].
        norm_groups: of group norm [32]; divides ``channels``.
        patch_size: pixels a side of the patches that the finest maps are of [1]; 2 spares the finest resolution, which takes most of the
            time where pictures are small.
    """

    image_size: int
    levels: int
    coded_level: int | None
    channels: int
    width: int
    codebook_size: int
    code_dim: int
    residual_blocks: int
    norm_groups: int
    patch_size: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "coded_level" and value is None:
                continue
            least = 0 if field.name == "coded_level" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(
                    f"autoencoder config: {field.name} must be a whole number from {least} on, not {value!r}"
                )
        if self.coded_level is not None and self.coded_level > self.levels - 2:
            raise UserError(
                f"autoencoder config: coded_level must be below the coarsest of the {self.levels} levels, is {self.coded_level}"
            )
        if self.channels % self.norm_groups:
            raise UserError(
                f"autoencoder config: norm_groups ({self.norm_groups}) must divide channels ({self.channels})"
            )
        if self.image_size % (4 * 2 ** (self.levels - 1)):
            raise UserError(
                f"autoencoder config: image_size must be a multiple of {4 * 2 ** (self.levels - 1)} for {self.levels} levels, is "
                f"{self.image_size}"
            )

        if self.patch_size not in (1, 2):
            raise UserError(f"autoencoder config: patch_size must be 1 or 2, is {self.patch_size}")

    @property
    def first_level(self) -> tuple[int, ...]:
        """Factors of the channels at the resolutions that the first level passes, the finest first."""
        return FIRST_LEVEL[self.patch_size - 1 :]

    @property
    def patch_channels(self) -> int:
        """Numbers of a patch."""
        return 3 * self.patch_size**2

    @property
    def built_levels(self) -> int:
        """Levels that have encoders and decoders."""
        return self.levels if self.coded_level is None else self.coded_level + 1

    @property
    def coded_levels(self) -> tuple[int, ...]:
        """Levels that are quantized, the finest first."""
        return tuple(range(self.levels)) if self.coded_level is None else (self.coded_level,)

    def grid_size(self, level: int) -> int:
        """Cells along a side of a level's grid."""
        return self.image_size // (4 * 2**level)

    @property
    def cells(self) -> int:
        """Codes of a picture, of all levels together."""
        return sum(self.grid_size(level) ** 2 for level in self.coded_levels)


def named_config(name: str, **changes: Any) -> AugVAEConfig:
    """The size ``name`` of ``configs/`` (smoke, toybox, base: the paper's), with ``changes``.

    Raises:
        UserError: an unknown name or key.
    """
    if name not in SIZES:
        raise UserError(f"no autoencoder is named {name!r}; use one of {', '.join(SIZES)}")
    return read_config(CONFIG_FOLDER / f"aug_vae_{name}.json", **changes)


def read_config(file: Path, **changes: Any) -> AugVAEConfig:
    """The config in the JSON ``file``, with ``changes``; a UserError that names the file, or the key, that is missing or wrong."""
    return read_config_file(AugVAEConfig, file, "autoencoder", **changes)


class ResidualBlock(nn.Module):
    """Group norm, swish and a 3x3 convolution, twice, beside a shortcut: 1x1 where the channels change."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, NORM_EPSILON)
        self.convolution1 = LearningConvolution(channels_in, channels_out)
        self.norm2 = nn.GroupNorm(groups, channels_out, NORM_EPSILON)
        self.convolution2 = LearningConvolution(channels_out, channels_out)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[n, C_in, H, W] -> [n, C_out, H, W]."""
        hidden = self.convolution1(F.silu(self.norm1(maps)))
        return self.shortcut(maps) + self.convolution2(F.silu(self.norm2(hidden)))


class Halving(nn.Conv2d):
    """A 3x3 convolution with stride 2 that looks one pixel past the right and bottom edges."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, maps: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, C, H / 2, W / 2]."""
        return super().forward(F.pad(maps, (0, 1, 0, 1)))


class Doubling(LearningConvolution):
    """Each pixel four times, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, C, 2H, 2W]."""
        return super().forward(F.interpolate(maps, scale_factor=2.0, mode="nearest"))


def residual_blocks(
    config: AugVAEConfig, channels_in: int, channels_out: int, count: int
) -> list[ResidualBlock]:
    """So many blocks, the first of which changes the channels."""
    widths = [channels_in, *[channels_out] * count]
    return [ResidualBlock(before, after, config.norm_groups) for before, after in pairwise(widths)]


class Encoder(nn.Module):
    """E(f, width) of L-Verse 3.3: [n, C, H, W] -> [n, width, H / f, W / f], f being 2 to the number of ``factors`` less one."""

    def __init__(self, config: AugVAEConfig, channels_in: int, factors: Sequence[int]) -> None:
        super().__init__()
        channels = config.channels
        self.stem = LearningConvolution(channels_in, channels)
        self.blocks = nn.ModuleList()
        for place, factor in enumerate(factors):
            if place:
                self.blocks.append(Halving(channels))
            self.blocks.extend(
                residual_blocks(config, channels, factor * config.channels, config.residual_blocks)
            )
            channels = factor * config.channels
        self.blocks.extend(residual_blocks(config, channels, channels, 2))
        self.norm = nn.GroupNorm(config.norm_groups, channels, NORM_EPSILON)
        self.head = LearningConvolution(channels, config.width)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.stem(maps)
        for block in self.blocks:
            maps = block(maps)
        return self.head(F.silu(self.norm(maps)))


class Decoder(nn.Module):
    """G(f, C) of L-Verse 3.3: [n, C_in, H, W] -> [n, C, fH, fW]."""

    def __init__(
        self, config: AugVAEConfig, channels_in: int, channels_out: int, factors: Sequence[int]
    ) -> None:
        super().__init__()
        channels = factors[-1] * config.channels
        self.stem = LearningConvolution(channels_in, channels)
        self.blocks = nn.ModuleList(residual_blocks(config, channels, channels, 2))
        for place, factor in enumerate(reversed(factors)):
            if place:
                self.blocks.append(Doubling(channels))
            # one more than an encoder has
            self.blocks.extend(
                residual_blocks(config, channels, factor * config.channels, config.residual_blocks + 1)
            )
            channels = factor * config.channels
        self.norm = nn.GroupNorm(config.norm_groups, channels, NORM_EPSILON)
        self.head = LearningConvolution(channels, channels_out)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.stem(maps)
        for block in self.blocks:
            maps = block(maps)
        return self.head(F.silu(self.norm(maps)))


@dataclass(frozen=True)
class Reconstruction:
    """A picture's way through the network.

    Attributes:
        pixels: float ``[n, 3, S, S]``, about -1..1.
        commitment: sum over the coded levels of the mean squared distance to the codes.
        codes: int64 ``[n, h, w]`` of each coded level, the finest first.
    """

    pixels: Tensor
    commitment: Tensor
    codes: list[Tensor]


class AugVAE(nn.Module):
    """[n, 3, S, S] pixels in -1..1 to codes and back (L-Verse 3.3).

    ``quantizer`` is the codebook of all levels; a level's 1x1 convolutions before and after it are its own.
    """

    def __init__(self, config: AugVAEConfig) -> None:
        super().__init__()
        self.config = config
        levels, width = config.built_levels, config.width
        factors = [config.first_level, *[FURTHER_LEVELS] * (levels - 1)]
        self.encoders = nn.ModuleList(
            Encoder(config, width if level else config.patch_channels, factors[level])
            for level in range(levels)
        )
        self.before_codes = nn.ModuleList(nn.Conv2d(width, config.code_dim, 1) for _ in config.coded_levels)
        self.after_codes = nn.ModuleList(nn.Conv2d(config.code_dim, width, 1) for _ in config.coded_levels)
        # the coarsest of all levels has nothing below it
        self.decoders = nn.ModuleList(
            Decoder(
                config,
                width if level == config.levels - 1 else 2 * width,
                width if level else config.patch_channels,
                factors[level],
            )
            for level in range(levels)
        )
        self.expansions = nn.ModuleList(
            nn.Conv2d(width, 2 * width, 1) for _ in range(0 if config.coded_level is None else levels)
        )
        self.quantizer = VectorQuantizer(config.codebook_size, config.code_dim)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Pixels ``[n, 3, S, S]`` to what is quantized: ``[n, D, h, w]`` of each coded level, the finest first."""
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise UserError(f"pixels must be [n, 3, {size}, {size}], are {list(pixels.shape)}")
        maps = F.pixel_unshuffle(pixels, self.config.patch_size)
        found: list[Tensor] = []
        for level, encoder in enumerate(self.encoders):
            maps = encoder(maps)
            if level in self.config.coded_levels:
                found.append(self.before_codes[len(found)](maps))
        return found

    def codes(self, pixels: Tensor) -> list[Tensor]:
        """Pixels to the nearest codes, int64 ``[n, h, w]`` of each coded level, the finest first."""
        return [self.quantizer(maps).codes for maps in self.features(pixels)]

    def vectors(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[n, h, w]`` to their vectors ``[n, D, h, w]``; where there is none, -1, to the mean of all."""
        found = F.embedding(codes.clamp(min=0), self.quantizer.embedding)
        found = torch.where(codes[..., None] < 0, self.quantizer.embedding.mean(0), found)
        return found.permute(0, 3, 1, 2)

    def pixels(self, codes: Tensor) -> Tensor:
        """A single-level network's codes int64 ``[n, cells]``, row-major from the top left, to pixels ``[n, 3, S, S]``; -1 where there
        is none."""
        (level,) = self.config.coded_levels
        size = self.config.grid_size(level)
        return self.decode([self.vectors(codes.view(-1, size, size))])

    def decode(self, vectors: Sequence[Tensor]) -> Tensor:
        """Vectors of codes ``[n, D, h, w]`` of each coded level, the finest first, to pixels ``[n, 3, S, S]``."""
        below: Tensor | None = None
        for level in reversed(range(self.config.built_levels)):
            if self.config.coded_level is None:
                own = self.after_codes[level](vectors[level])
                maps = own if below is None else torch.cat([own, below], 1)
            else:
                maps = self.expansions[level](self.after_codes[0](vectors[0]) if below is None else below)
            below = self.decoders[level](maps)
        assert below is not None
        return F.pixel_shuffle(below, self.config.patch_size)

    def forward(
        self, pixels: Tensor, candidates: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> Reconstruction:
        """Quantize and draw again. ``candidates``: of each coded level, for
        :meth:`diptych.model.networks.vector_quantizer.VectorQuantizer.forward`."""
        quantized: list[Quantized] = []
        for place, maps in enumerate(self.features(pixels)):
            quantized.append(self.quantizer(maps, candidates[place] if candidates else None))
        return Reconstruction(
            self.decode([each.vectors for each in quantized]),
            torch.stack([each.commitment for each in quantized]).sum(),
            [each.codes for each in quantized],
        )


def single_level(model: AugVAE, level: int) -> AugVAE:
    """AugVAE-SL from a multi-level network (L-Verse 3.3): it keeps the codebook, the encoders and decoders down to ``level``, and the
    1x1 convolutions around that level's codes.

    Of what an expansion makes, the half that the decoder has read so far begins as it was, the other as torch starts a
    convolution; the paper says no more than that it stabilizes the fine-tuning.
    """
    if model.config.coded_level is not None:
        raise UserError("only a multi-level autoencoder can be cut to one level; this one has one")
    config, width = replace(model.config, coded_level=level), model.config.width
    new = AugVAE(config)
    weights = new.state_dict()
    for name, tensor in model.state_dict().items():
        kind, _, rest = name.partition(".")
        place, _, end = rest.partition(".")
        if kind in ("before_codes", "after_codes"):
            if int(place) == level:
                weights[f"{kind}.0.{end}"] = tensor
        elif kind not in ("encoders", "decoders") or int(place) <= level:
            weights[name] = tensor
    for place in range(level + 1):
        # a decoder reads its own level's codes first, then what comes from below
        known = slice(0, width) if place == level else slice(width, 2 * width)
        weights[f"expansions.{place}.weight"][known] = torch.eye(width)[:, :, None, None]
        weights[f"expansions.{place}.bias"][known] = 0.0
    new.load_state_dict(weights)
    return new


def save_aug_vae(folder: Path, model: AugVAE) -> None:
    """Write config.json and model.safetensors (float32, codebook and its means included) into ``folder``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config_text(model.config), encoding="utf-8")


def load_aug_vae(folder: Path, device: torch.device | str = "cpu") -> AugVAE:
    """Read what :func:`save_aug_vae` wrote; eval mode, float32.

    Raises:
        UserError: a file is missing, unreadable or does not fit.
    """
    model = AugVAE(read_config(folder / "config.json"))
    weights = folder / "model.safetensors"
    try:
        model.load_state_dict(unpack_weights(read_tensors(weights)))
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {folder / 'config.json'}: {misfit(error)}") from None
    return model.to(device).eval()
