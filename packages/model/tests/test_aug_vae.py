"""AugVAE: levels, shapes, the cut to one level, and the layers against an independent restatement."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.networks.aug_vae import AugVAE, AugVAEConfig, named_config, single_level

SMOKE = named_config("smoke")
MULTI = dataclasses.replace(SMOKE, coded_level=None)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def built(config: AugVAEConfig) -> AugVAE:
    torch.manual_seed(0)
    return AugVAE(config).eval()


def test_a_picture_has_codes_of_every_coded_level_and_is_drawn_from_them(pixels: Tensor) -> None:
    for config, sizes in ((MULTI, [8, 4, 2, 1]), (SMOKE, [4])):
        model = built(config)
        found = model(pixels)
        assert [each.shape for each in found.codes] == [(2, size, size) for size in sizes]
        assert config.cells == sum(size**2 for size in sizes)
        assert found.pixels.shape == pixels.shape and found.commitment.ndim == 0
        codes = model.codes(pixels)
        assert all(a.equal(b) for a, b in zip(codes, found.codes, strict=True))
        again = model.decode([model.vectors(each) for each in codes])
        assert torch.allclose(again, found.pixels, atol=1e-5)


def test_patches_spare_the_finest_resolution(pixels: Tensor) -> None:
    """Grids and pictures are of the same sizes; patches of four pixels are what the finest maps are made of."""
    config = dataclasses.replace(SMOKE, patch_size=2)
    model = built(config)
    found = model(pixels)
    assert [each.shape for each in found.codes] == [(2, 4, 4)] and found.pixels.shape == pixels.shape
    assert model.encoders[0].stem.in_channels == 12 and model.decoders[0].head.out_channels == 12
    seen: list[tuple[int, ...]] = []
    for block in model.encoders[0].blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[2:])))
    model(pixels)
    assert max(seen) == (16, 16)
    assert model.pixels(found.codes[0].flatten(1)).shape == pixels.shape
    with pytest.raises(UserError, match="patch_size must be 1 or 2, is 3"):
        dataclasses.replace(SMOKE, patch_size=3)


def test_a_missing_code_is_the_mean_of_all() -> None:
    model = built(SMOKE)
    vectors = model.vectors(torch.tensor([[[3, -1]]]))
    assert vectors[0, :, 0, 0].equal(model.quantizer.embedding[3])
    assert torch.allclose(vectors[0, :, 0, 1], model.quantizer.embedding.mean(0))


def test_the_paper_s_sizes() -> None:
    """L-Verse 3.3 and 3.5: grids of 64, 32, 16 and 8; one codebook of 8,192 for all; the single level has 32x32 codes."""
    base = named_config("base")
    with torch.device("meta"):
        multi, single = AugVAE(dataclasses.replace(base, coded_level=None)), AugVAE(base)
    assert [multi.config.grid_size(level) for level in multi.config.coded_levels] == [64, 32, 16, 8]
    assert single.config.cells == 1024 and len(single.quantizer) == 8192
    assert sum(parameter.numel() for parameter in single.parameters()) == pytest.approx(100e6, rel=0.15)
    quantizers = [name for name, _ in multi.named_buffers() if name.endswith("embedding")]
    assert quantizers == ["quantizer.embedding"]


def test_all_levels_move_one_codebook(pixels: Tensor) -> None:
    model = built(MULTI).train()
    model(pixels)
    assert float(model.quantizer.running_sums()[0].sum()) == 2 * (64 + 16 + 4 + 1)


def test_the_single_level_keeps_what_the_multi_level_has_learned(pixels: Tensor) -> None:
    multi = built(MULTI)
    single = single_level(multi, 1).eval()
    assert single.config == SMOKE
    assert single.quantizer.embedding.equal(multi.quantizer.embedding)
    assert single.codes(pixels)[0].equal(multi.codes(pixels)[1])
    names = dict(multi.named_parameters())
    for name, parameter in single.named_parameters():
        kind = name.split(".")[0]
        if kind in ("encoders", "decoders"):
            assert parameter.equal(names[name])
        elif kind != "expansions":
            assert parameter.equal(names[name.replace(".0.", ".1.")])
    # where nothing came from below, its decoder has read the same
    maps = multi.after_codes[1](multi.vectors(multi.codes(pixels)[1]))
    assert torch.allclose(single.expansions[1](maps)[:, : MULTI.width], maps, atol=1e-6)
    below = torch.randn(2, MULTI.width, 8, 8)
    assert torch.allclose(single.expansions[0](below)[:, MULTI.width :], below, atol=1e-6)
    with pytest.raises(UserError, match="only a multi-level"):
        single_level(single, 0)


def test_an_encoder_equals_its_restatement(pixels: Tensor) -> None:
    """Plain functions over the weights, in the order of figure 2 and of the released layers."""
    model = built(dataclasses.replace(MULTI, residual_blocks=2))
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def convolved(name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    def normed(name: str, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (MULTI.norm_groups, -1))
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        scaled = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()).flatten(1, 2)
        return scaled * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def block(name: str, x: Tensor) -> Tensor:
        hidden = convolved(f"{name}.convolution1", swish(normed(f"{name}.norm1", x)), padding=1)
        hidden = convolved(f"{name}.convolution2", swish(normed(f"{name}.norm2", hidden)), padding=1)
        return hidden + (convolved(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in weights else x)

    def encoder(name: str, x: Tensor, resolutions: int) -> Tensor:
        x, place = convolved(f"{name}.stem", x, padding=1), 0
        for resolution in range(resolutions):
            if resolution:
                right, bottom = torch.zeros_like(x[..., :1]), None
                x = torch.cat([x, right], 3)
                bottom = torch.zeros_like(x[:, :, :1])
                x = convolved(f"{name}.blocks.{place}", torch.cat([x, bottom], 2), stride=2)
                place += 1
            for _ in range(2):
                x, place = block(f"{name}.blocks.{place}", x), place + 1
        for _ in range(2):
            x, place = block(f"{name}.blocks.{place}", x), place + 1
        return convolved(f"{name}.head", swish(normed(f"{name}.norm", x)), padding=1)

    first = encoder("encoders.0", pixels.double(), 3)
    second = encoder("encoders.1", first, 2)
    wanted = [convolved("before_codes.0", first), convolved("before_codes.1", second)]
    for ours, theirs in zip(model.features(pixels), wanted, strict=False):
        assert torch.allclose(ours.double(), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coded_level": 3}, "coded_level must be below the coarsest of the 4 levels, is 3"),
        ({"image_size": 40}, "image_size must be a multiple of 32 for 4 levels, is 40"),
        ({"norm_groups": 3}, r"norm_groups \(3\) must divide channels \(8\)"),
        ({"channels": 0}, "channels must be a whole number from 1 on, not 0"),
    ],
)
def test_configs_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named_config("smoke", **changes)


def test_pictures_of_another_size_are_named() -> None:
    with pytest.raises(UserError, match=r"pixels must be \[n, 3, 32, 32\], are \[1, 3, 64, 64\]"):
        built(SMOKE).codes(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="no autoencoder is named 'huge'"):
        named_config("huge")
    with pytest.raises(UserError, match="autoencoder key 'depth' is unknown"):
        named_config("smoke", depth=3)
