"""L-Verse's released autoencoders: names, use of every tensor, and the same pictures and codes as a restatement on random weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from released_checkpoints import run_import
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.importers.aug_vae import import_aug_vae
from diptych.model.importers.detect import detect_format
from diptych.model.networks.aug_vae import AugVAEConfig, load_aug_vae
from diptych.model.networks.config_files import config_text

CONFIG = AugVAEConfig(
    image_size=32,
    levels=4,
    coded_level=1,
    channels=8,
    width=12,
    codebook_size=20,
    code_dim=6,
    residual_blocks=2,
    norm_groups=4,
)
LEVELS = 4


class Released:
    """A checkpoint of the released layout with random weights, and what its network makes of pixels, by plain functions over its own
    names."""

    def __init__(self, single: bool) -> None:
        self.single, self.generator = single, torch.Generator().manual_seed(1)
        self.tensors: dict[str, Tensor] = {}
        channels, width, code = CONFIG.channels, CONFIG.width, CONFIG.code_dim
        kept = 2 if single else LEVELS
        for level in range(kept):
            self.encoder(f"encoders.{level}", width if level else 3, (1, 2, 4) if level == 0 else (2, 4))
        for number in range(kept):
            level = kept - 1 - number
            coarsest = level == LEVELS - 1
            self.decoder(
                f"decoders.{number}",
                width if coarsest else 2 * width,
                width if level else 3,
                (1, 2, 4) if level == 0 else (2, 4),
            )
        book = self.random(CONFIG.codebook_size, code)
        for level in range(LEVELS):
            self.convolution(f"pre_quants.{level}", width, code, 1)
            self.convolution(f"post_quants.{level}", code, width, 1)
            self.tensors[f"quantizers.{level}.embedding.weight"] = book
            self.tensors[f"quantizers.{level}.embedding.cluster_size"] = torch.ones(CONFIG.codebook_size)
            self.tensors[f"quantizers.{level}.embedding.embed_avg"] = 2 * book
        if single:
            for number in range(2):
                self.convolution(f"connectors.{number}", width, 2 * width, 1)
        self.tensors["loss.perceptual_loss.lin0.model.1.weight"] = torch.ones(1, channels, 1, 1)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def convolution(self, name: str, channels_in: int, channels_out: int, size: int) -> None:
        self.tensors[f"{name}.weight"] = self.random(channels_out, channels_in, size, size) / (channels_in**0.5 * size)
        self.tensors[f"{name}.bias"] = 0.1 * self.random(channels_out)

    def norm(self, name: str, channels: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.1 * self.random(channels)
        self.tensors[f"{name}.bias"] = 0.1 * self.random(channels)

    def block(self, name: str, channels_in: int, channels_out: int) -> None:
        self.norm(f"{name}.norm1", channels_in)
        self.convolution(f"{name}.conv1", channels_in, channels_out, 3)
        self.norm(f"{name}.norm2", channels_out)
        self.convolution(f"{name}.conv2", channels_out, channels_out, 3)
        if channels_in != channels_out:
            self.convolution(f"{name}.nin_shortcut", channels_in, channels_out, 1)

    def encoder(self, name: str, channels_in: int, factors: tuple[int, ...]) -> None:
        channels = CONFIG.channels
        self.convolution(f"{name}.conv_in", channels_in, channels, 3)
        for place, factor in enumerate(factors):
            for number in range(2):
                self.block(f"{name}.down.{place}.block.{number}", channels, factor * CONFIG.channels)
                channels = factor * CONFIG.channels
            if place < len(factors) - 1:
                self.convolution(f"{name}.down.{place}.downsample.conv", channels, channels, 3)
        self.ending(name, channels, CONFIG.width)

    def decoder(self, name: str, channels_in: int, channels_out: int, factors: tuple[int, ...]) -> None:
        channels = factors[-1] * CONFIG.channels
        self.convolution(f"{name}.conv_in", channels_in, channels, 3)
        for place in reversed(range(len(factors))):
            for number in range(3):
                self.block(f"{name}.up.{place}.block.{number}", channels, factors[place] * CONFIG.channels)
                channels = factors[place] * CONFIG.channels
            if place:
                self.convolution(f"{name}.up.{place}.upsample.conv", channels, channels, 3)
        self.ending(name, factors[-1] * CONFIG.channels, channels_out, channels)

    def ending(self, name: str, middle: int, channels_out: int, last: int | None = None) -> None:
        for number in (1, 2):
            self.block(f"{name}.mid.block_{number}", middle, middle)
        self.norm(f"{name}.norm_out", last or middle)
        self.convolution(f"{name}.conv_out", last or middle, channels_out, 3)

    # What it makes of pixels

    def convolved(self, name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], **how)

    def activated(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        x = F.group_norm(x, CONFIG.norm_groups, weight, bias, 1e-6)
        return x * x.sigmoid()

    def through(self, name: str, x: Tensor) -> Tensor:
        hidden = self.convolved(f"{name}.conv1", self.activated(f"{name}.norm1", x), padding=1)
        hidden = self.convolved(f"{name}.conv2", self.activated(f"{name}.norm2", hidden), padding=1)
        return hidden + (self.convolved(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.tensors else x)

    def encoded(self, name: str, x: Tensor, resolutions: int) -> Tensor:
        x = self.convolved(f"{name}.conv_in", x, padding=1)
        for place in range(resolutions):
            for number in range(2):
                x = self.through(f"{name}.down.{place}.block.{number}", x)
            if place < resolutions - 1:
                x = self.convolved(f"{name}.down.{place}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        for number in (1, 2):
            x = self.through(f"{name}.mid.block_{number}", x)
        return self.convolved(f"{name}.conv_out", self.activated(f"{name}.norm_out", x), padding=1)

    def decoded(self, name: str, x: Tensor, resolutions: int) -> Tensor:
        x = self.convolved(f"{name}.conv_in", x, padding=1)
        for number in (1, 2):
            x = self.through(f"{name}.mid.block_{number}", x)
        for place in reversed(range(resolutions)):
            for number in range(3):
                x = self.through(f"{name}.up.{place}.block.{number}", x)
            if place:
                x = self.convolved(f"{name}.up.{place}.upsample.conv", F.interpolate(x, scale_factor=2), padding=1)
        return self.convolved(f"{name}.conv_out", self.activated(f"{name}.norm_out", x), padding=1)

    def reconstruction(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Codes of the coded levels, the finest first, and pixels."""
        book = self.tensors["quantizers.0.embedding.weight"]
        kept, found, maps, x = (2 if self.single else LEVELS), [], [], pixels
        for level in range(kept):
            x = self.encoded(f"encoders.{level}", x, 2 if level else 3)
            rows = self.convolved(f"pre_quants.{level}", x).permute(0, 2, 3, 1)
            codes = torch.cdist(rows.flatten(0, 2), book).argmin(1).view(rows.shape[:3])
            found.append(codes)
            maps.append(book[codes].permute(0, 3, 1, 2))
        if self.single:
            x = self.convolved("post_quants.0", maps[1])
            for number, resolutions in enumerate((2, 3)):
                x = self.decoded(f"decoders.{number}", self.convolved(f"connectors.{number}", x), resolutions)
            return found[1:], x
        below = None
        for number in range(LEVELS):
            own = self.convolved(f"post_quants.{number}", maps[LEVELS - 1 - number])
            x = own if below is None else torch.cat([own, below], 1)
            below = x = self.decoded(f"decoders.{number}", x, 3 if number == LEVELS - 1 else 2)
        return found, x

    def save(self, path: Path) -> Path:
        """As Lightning writes it: hyper-parameters are an argparse.Namespace."""
        content = {
            "epoch": 29,
            "state_dict": self.tensors,
            "hyper_parameters": {"args": argparse.Namespace(resolution=32), "learning_rate": 1e-5},
        }
        torch.save(content, path)
        return path


@pytest.mark.parametrize("single", [False, True], ids=["multi-level", "single-level"])
@torch.no_grad()
def test_codes_and_pictures_are_the_released_networks(single: bool, tmp_path: Path) -> None:
    released = Released(single)
    imported = import_aug_vae(released.save(tmp_path / "vae.ckpt"), CONFIG)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    codes, drawn = released.reconstruction(pixels)
    found = imported.model(pixels)
    assert [own.shape for own in found.codes] == [theirs.shape for theirs in codes]
    assert all(own.equal(theirs) for own, theirs in zip(found.codes, codes, strict=True))
    assert len(set(codes[0].flatten().tolist())) > 5
    assert torch.allclose(found.pixels, drawn, atol=1e-4)
    report = imported.report
    assert set(report.used) | set(report.unused) == set(released.tensors) and not report.initialised
    assert not set(report.used) & set(report.unused)
    assert imported.model.config.coded_level == (1 if single else None)
    assert imported.model.quantizer.sums.equal(2 * imported.model.quantizer.embedding)


def test_the_command_writes_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released, size = Released(single=True), tmp_path / "size.json"
    source = released.save(tmp_path / "vae.ckpt")
    size.write_text(config_text(CONFIG))
    assert detect_format(source) == "aug-vae"
    assert run_import(["aug-vae", str(source), str(tmp_path / "out"), "--size", str(size)]) == 0
    assert "the perceptual loss's network" in capsys.readouterr().out
    model = load_aug_vae(tmp_path / "out")
    assert model.config == CONFIG and not model.training
    assert json.loads((tmp_path / "out/import.json").read_text())["initialised"] == []
    (tmp_path / "out/config.json").write_text(config_text(dataclasses.replace(CONFIG, width=16)))
    with pytest.raises(UserError, match=r"model\.safetensors does not fit"):
        load_aug_vae(tmp_path / "out")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    released, path = Released(single=False), tmp_path / "vae.ckpt"
    with pytest.raises(UserError, match="does not fit an AugVAE of image_size 32, 16 channels"):
        import_aug_vae(released.save(path), dataclasses.replace(CONFIG, channels=16))
    released.tensors["quantizers.2.embedding.weight"] = released.random(20, 6)
    with pytest.raises(UserError, match="the codebook of level 2 is another than that of level 3"):
        import_aug_vae(released.save(path), CONFIG)
    del released.tensors["encoders.1.mid.block_1.conv1.weight"]
    released.tensors["optimizer"] = torch.ones(1)
    with pytest.raises(UserError, match=r"1 tensors are missing \(encoders\.1\.mid\.block_1\.conv1\.weight\).*1 tensors are unknown"):
        import_aug_vae(released.save(path), CONFIG)
    with pytest.raises(UserError, match="no such checkpoint"):
        import_aug_vae(tmp_path / "none.ckpt", CONFIG)
    single = Released(single=True)
    with pytest.raises(UserError, match="a single-level autoencoder; give a config with its coded_level"):
        import_aug_vae(single.save(path), dataclasses.replace(CONFIG, coded_level=None))
