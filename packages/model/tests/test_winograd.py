from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from diptych.model.networks.winograd import LearningConvolution, WinogradConvolution


def plain_and_ours(
    channels_in: int, channels_out: int, height: int, width: int, factor: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The result and the gradients of features, weight and bias, by both."""
    torch.manual_seed(0)
    arguments = [
        torch.randn(3, channels_in, height, width),
        torch.randn(channels_out, channels_in, 3, 3),
        torch.randn(channels_out),
    ]
    gradient = torch.randn(3, channels_out // factor**2, height * factor, width * factor)

    def plain(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(functional.conv2d(features, weight, bias, padding=1), factor)

    def ours(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return WinogradConvolution.apply(features, weight, bias, factor)

    both = []
    for convolution in (plain, ours):
        given = [argument.double().requires_grad_() for argument in arguments]
        result = convolution(*given)
        both.append([result.detach(), *torch.autograd.grad(result, given, gradient.double())])
    return both[0], both[1]


@pytest.mark.parametrize("shape", [(5, 7, 8, 8, 1), (6, 3, 4, 12, 1), (2, 2, 4, 4, 1), (5, 12, 8, 4, 2)])
def test_is_the_plain_convolution(shape: tuple[int, int, int, int, int]) -> None:
    for plain, ours in zip(*plain_and_ours(*shape), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_rounding_is_that_of_float32() -> None:
    torch.manual_seed(0)
    features, weight, bias = torch.randn(2, 64, 16, 16), torch.randn(64, 64, 3, 3) / 24, torch.zeros(64)
    exact = functional.conv2d(features.double(), weight.double(), padding=1)
    ours = WinogradConvolution.apply(features, weight, bias, 1)
    assert (ours - exact).abs().max() < 2e-5 * exact.abs().max()


def test_a_frozen_input_needs_no_gradient() -> None:
    weight, bias = torch.randn(4, 4, 3, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    WinogradConvolution.apply(torch.randn(1, 4, 4, 4), weight, bias, 1).sum().backward()
    assert weight.grad is not None and bias.grad is not None


def uses_winograd(layer: LearningConvolution, features: torch.Tensor) -> bool:
    function = layer(features).grad_fn
    return "Winograd" in type(function).__name__


def test_layer_is_ordinary_wherever_it_does_not_learn_or_does_not_fit() -> None:
    layer = LearningConvolution(48, 48)
    features = torch.randn(1, 48, 8, 8)
    assert uses_winograd(layer, features)
    with torch.no_grad():
        assert torch.equal(layer(features), functional.conv2d(features, layer.weight, layer.bias, padding=1))
    shuffling = LearningConvolution(48, 48, shuffle=True)
    with torch.no_grad():
        assert torch.equal(
            shuffling(features), functional.pixel_shuffle(nn.Conv2d.forward(shuffling, features), 2)
        )
    torch.testing.assert_close(shuffling(features), shuffling.eval().requires_grad_(False)(features))
    assert not uses_winograd(LearningConvolution(96, 96, groups=2), torch.randn(1, 96, 8, 8))
    assert not uses_winograd(layer, torch.randn(1, 48, 6, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(features).dtype == torch.bfloat16
    assert not uses_winograd(LearningConvolution(47, 48), torch.randn(1, 47, 8, 8))
    assert not uses_winograd(layer.requires_grad_(False), features.requires_grad_())
