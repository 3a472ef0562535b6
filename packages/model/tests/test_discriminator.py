"""The discriminator: the paper's size, its two heads, and the halving convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from diptych.model.errors import UserError
from diptych.model.networks.discriminator import Discriminator, DiscriminatorConfig, HalvingConvolution

PAPER = DiscriminatorConfig(channels=64, first_channels=64)
SMALL = DiscriminatorConfig(channels=16, first_channels=8)


def codebook(classes: int = 5, feature_dim: int = 12) -> torch.Tensor:
    return torch.randn(classes, feature_dim, generator=torch.Generator().manual_seed(1)) * 3 + 7


def test_paper_size() -> None:
    """D.2 says 0.5M parameters: five blocks and a code head whose size is that of the codebook's vectors, not of K."""
    network = Discriminator(PAPER, 256, codebook(10_000, 2048))
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(0.5e6, rel=0.02)
    assert len(network.blocks) == 5


@pytest.mark.parametrize(("size", "blocks"), [(16, 1), (64, 3), (128, 4), (256, 5)])
@pytest.mark.parametrize("grid_blocks", [0, 1])
def test_every_size_comes_down_to_8x8(size: int, blocks: int, grid_blocks: int) -> None:
    config = DiscriminatorConfig(channels=16, first_channels=8, grid_blocks=grid_blocks)
    judged = Discriminator(config, size, codebook())(torch.randn(2, 3, size, size))
    assert judged.verdicts.shape == (2,)
    assert judged.code_logits.shape == (2, 64, 5)
    sides = [size >> block for block in range(1, blocks + 1)] + [8] * grid_blocks
    widths = [min(16, 8 << block) for block in range(blocks)] + [16] * grid_blocks
    assert [tuple(maps.shape) for maps in judged.features] == [
        (2, width, side, side) for width, side in zip(widths, sides, strict=True)
    ]


def test_cells_run_from_the_top_left() -> None:
    """What is changed in cell (1, 6) changes the logits around it."""
    torch.manual_seed(0)
    network = Discriminator(SMALL, 64, codebook()).eval()
    images = torch.randn(8, 3, 64, 64)
    changed = images.clone()
    changed[:, :, 8:16, 48:56] = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        moved = (network(changed).code_logits - network(images).code_logits).square().sum((0, 2)).view(8, 8)
    moved = moved / moved.sum()
    assert (moved.sum(1) @ torch.arange(8.0)).item() == pytest.approx(1, abs=0.6)
    assert (moved.sum(0) @ torch.arange(8.0)).item() == pytest.approx(6, abs=0.6)


def test_halving_convolution_is_a_convolution_and_a_mean() -> None:
    layer = HalvingConvolution(6, 7).double()
    images = torch.randn(2, 6, 10, 12, dtype=torch.float64)
    expected = functional.avg_pool2d(functional.conv2d(images, layer.weight, layer.bias, padding=1), 2)
    torch.testing.assert_close(layer(images), expected)


def test_the_code_head_compares_with_the_codebook_in_proportion() -> None:
    """Codebooks that differ by shift and scale are the same to it; its vectors do not learn."""
    networks = []
    for vectors in (codebook(), codebook() * 40 - 3):
        torch.manual_seed(0)
        networks.append(Discriminator(SMALL, 32, vectors).eval())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        networks[0](images).code_logits, networks[1](images).code_logits, rtol=1e-4, atol=1e-5
    )
    assert networks[0].codebook.grad is None and "codebook" not in dict(networks[0].named_parameters())


def test_convolutions_of_the_blocks_and_the_verdict_are_spectrally_normalised() -> None:
    torch.manual_seed(0)
    network = Discriminator(SMALL, 32, codebook())
    for _ in range(60):  # one power iteration each
        network(torch.randn(1, 3, 32, 32))
    network.eval()
    layers = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name != "projection"
    ]
    assert len(layers) == 3 * len(network.blocks) + 1
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
        assert largest.item() == pytest.approx(1, abs=0.02)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(UserError, match="power of two"):
        Discriminator(SMALL, 96, codebook())
    with pytest.raises(UserError, match="power of two"):
        Discriminator(SMALL, 8, codebook())
    with pytest.raises(UserError, match="first_channels must be from 1 to channels"):
        DiscriminatorConfig(channels=8, first_channels=16)
    with pytest.raises(UserError, match="grid_blocks must be at least 0"):
        DiscriminatorConfig(channels=8, first_channels=8, grid_blocks=-1)
