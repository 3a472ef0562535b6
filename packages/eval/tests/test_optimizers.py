"""Muon for a network's inner matrices and kernels, AdamW for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from diptych.eval.optimizers import Optimizers


class Small(nn.Module):
    """A stem, two blocks and a head; one block's attention has queries, keys and values in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()), nn.MultiheadAttention(8, 2, batch_first=True)]
        )
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.blocks[0](self.stem(images)).flatten(2).mT
        return self.head(self.blocks[1](cells, cells, cells)[0].mean(1))


def train(network: nn.Module, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        network(torch.randn(4, 3, 9, 9)).square().mean().backward()
        optimizers.step(0.01)
        assert all(weight.grad is None for weight in network.parameters())


def optimizers_of(network: Small, muon: float) -> Optimizers:
    return Optimizers(network, (network.stem, network.head.weight), 0.1, muon, betas=(0.9, 0.999))


def small(**layout: torch.memory_format) -> Small:
    torch.manual_seed(0)
    return Small().to(**layout)


def test_muon_has_the_inner_matrices_and_adamw_all_else() -> None:
    network = small()
    names = {id(weight): name for name, weight in network.named_parameters()}
    optimizers = optimizers_of(network, 3.0)
    assert [names[id(weight)] for weight in optimizers.inner] == [
        "blocks.0.0.weight", "blocks.1.in_proj_weight", "blocks.1.out_proj.weight",
    ]  # fmt: skip
    groups = optimizers.optimizers[0].param_groups
    others = {names.pop(id(weight)) for group in groups for weight in group["params"]}
    assert len(others) + len(optimizers.inner) == len(list(network.parameters()))
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_and_projections_move_as_torchs_muon_moves_matrices(layout: torch.memory_format) -> None:
    network = small(memory_format=layout)
    kernel, projection = network.blocks[0][0].weight, network.blocks[1].in_proj_weight
    apart = [
        nn.Parameter(kernel.detach().permute(0, 2, 3, 1).flatten(1)),
        *(nn.Parameter(part.clone()) for part in projection.detach().chunk(3)),
    ]
    ours = optimizers_of(network, 3.0)
    torchs = torch.optim.Muon(apart, lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        torch.manual_seed(step)
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape)
        assert kernel.grad is not None and projection.grad is not None
        gradients = [kernel.grad.permute(0, 2, 3, 1).flatten(1), *projection.grad.chunk(3)]
        for matrix, gradient in zip(apart, gradients, strict=True):
            matrix.grad = gradient.clone()
        ours.step(0.01)
        torchs.step()
    # a column's place changes sums of bfloat16 by rounding
    torch.testing.assert_close(kernel.detach().permute(0, 2, 3, 1).flatten(1), apart[0].detach(), atol=2e-3, rtol=0)
    torch.testing.assert_close(projection.detach(), torch.cat(list(apart[1:])).detach())


def test_without_muon_it_is_adamw_alone() -> None:
    ours, torchs = small(), small()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in torchs.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in torchs.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        fused=True,
    )
    train(ours, optimizers_of(ours, 0.0), range(3))
    for step in range(3):
        torch.manual_seed(step)
        torchs(torch.randn(4, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_a_state_goes_on_to_equal_weights() -> None:
    whole = small(memory_format=torch.channels_last)
    train(whole, optimizers_of(whole, 3.0), range(6))
    first = small(memory_format=torch.channels_last)
    optimizers = optimizers_of(first, 3.0)
    train(first, optimizers, range(3))
    saved = copy.deepcopy((first.state_dict(), optimizers.state_dict()))
    second = small(memory_format=torch.channels_last)
    following = optimizers_of(second, 3.0)
    second.load_state_dict(saved[0])
    following.load_state_dict(saved[1])
    train(second, following, range(3, 6))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert not torch.equal(whole.head.weight, small().head.weight)


def test_a_weight_that_no_matrix_lies_on_is_refused() -> None:
    network = small()
    network.blocks[0][0].weight.data = torch.randn(3, 3, 6, 8).permute(3, 0, 2, 1)
    with pytest.raises(ValueError, match="neither row by row nor channels-last"):
        optimizers_of(network, 3.0)
