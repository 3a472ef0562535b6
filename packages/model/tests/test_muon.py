"""Muon against torch's own, and what it moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from diptych.model.networks.aug_vae import AugVAE
from diptych.model.networks.aug_vae import named_config as named_aug_vae
from diptych.model.networks.image_generator import ImageGenerator, named_config
from diptych.model.training import muon
from diptych.model.training.config import LoopConfig
from diptych.model.training.muon import Muon, inner_matrices, orthogonalised, shares_of
from diptych.model.training.optimisation import build_optimizers, parameter_groups
from diptych.model.training.processes import Processes

LOOP = LoopConfig(
    steps=6,
    learning_rate=0.1,
    weight_decay=0.1,
    muon=3.0,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="float32",
    seed=0,
    checkpoint_seconds=1e9,
)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 48, 16), (2, 16, 48)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    """Also those of a thousandth of the largest."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(-2.7, 0, left.shape[-1]) / 2
    for scale in (1e-6, 1.0, 1e3):
        result = orthogonalised(scale * (left * values) @ right)
        turned = left.mT @ result @ right.mT
        found = turned.diagonal(dim1=1, dim2=2)
        assert found.min() > 0.4 and found.max() < 1.6 and abs(found.mean() - 1) < 0.2
        assert (turned - torch.diag_embed(found)).abs().max() < 1e-2
    assert orthogonalised(torch.zeros(1, 4, 4)).equal(torch.zeros(1, 4, 4)), "no gradient, no step"


def test_it_moves_as_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has another polynomial and computes in bfloat16, one matrix after the other; those of equal shape lie together in
    ours."""
    monkeypatch.setattr(muon, "POLYNOMIALS", ((3.4445, -4.7750, 2.0315),) * 5)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((24, 24), (48, 16), (24, 24), (16, 48))]
    torchs = copy.deepcopy(ours)
    optimizers = [
        Muon([(weights, 1) for weights in ours], 0.1, "bfloat16"),
        torch.optim.Muon(torchs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    start = copy.deepcopy(ours)
    for step in range(4):
        gradients = [torch.randn_like(weights) for weights in ours]
        for optimizer, side in zip(optimizers, (ours, torchs), strict=True):
            for weights, gradient in zip(side, gradients, strict=True):
                weights.grad = gradient.clone()
            ours[2].grad = torchs[2].grad = None if step == 1 else ours[2].grad
            optimizer.param_groups[0]["lr"] = 0.05
            optimizer.step()
    for first, one, other in zip(start, ours, torchs, strict=True):
        moved = (other - first).norm()
        assert moved > 0.1 and (one - other).norm() < 0.03 * moved


def test_parts_of_a_projection_are_matrices_of_their_own() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(36, 12))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    gradient = torch.randn(36, 12)
    gradient[12:24] *= 1000  # as one matrix, this part would have all of the step
    whole.grad = gradient
    for part, own in zip(parts, gradient.chunk(3), strict=True):
        part.grad = own.clone()
    for optimizer in (Muon([(whole, 3)], 0.1), Muon([(part, 1) for part in parts], 0.1)):
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
    torch.testing.assert_close(whole, torch.cat(parts))


def test_kernels_are_matrices_with_a_row_for_each_output() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(8, 3, 2, 2)
    matrix.grad = kernel.grad.flatten(1)
    for weight in (kernel, matrix):
        optimizer = Muon([(weight, 1)], 0.1, "float32")
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_of_an_image_generator_it_has_the_blocks_and_not_the_ends() -> None:
    generator = ImageGenerator(named_config("smoke"))
    names = {parameter: name for name, parameter in generator.named_parameters()}
    moved = {names[parameter] for parameter, _ in inner_matrices(generator)}
    assert moved == {
        name for name, weight in generator.named_parameters()
        if weight.ndim > 1 and name.startswith(("blocks.", "grid_blocks."))
    }  # fmt: skip
    assert {"bottleneck.weight", "to_rgb.0.weight"} <= {*names.values()} - moved


def test_of_networks_that_are_stacked_themselves_it_has_each_kernel_once() -> None:
    """Encoders and decoders of AugVAE, whose blocks are stacks inside a stack; the 1x1 convolutions around codes are the ends."""
    model = AugVAE(named_aug_vae("smoke", coded_level=None))
    names = {parameter: name for name, parameter in model.named_parameters()}
    moved = [names[parameter] for parameter, _ in inner_matrices(model)]
    assert len(moved) == len({*moved})
    assert {*moved} == {
        name for name, weight in model.named_parameters() if weight.ndim == 4 and name.startswith(("encoders.", "decoders."))
    }


def test_it_has_the_matrices_of_layers_and_adamw_all_else(tiny) -> None:
    model = copy.deepcopy(tiny.model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices = dict(inner_matrices(model))
    layers = ("language_layers", "visual_layers", "cross_layers")
    expected = {name for name, weight in model.named_parameters() if name.startswith(layers) and weight.ndim == 2}
    assert {names[parameter] for parameter in matrices} == expected
    for parameter, parts in matrices.items():
        assert (parts == 3) == ("projection" in names[parameter]), names[parameter]
    adamw, own = build_optimizers(model, LOOP, (0.9, 0.999))
    moved = [parameter for optimizer in (adamw, own) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(moved) == len({*moved}) == len(names) and {*own.param_groups[0]["params"]} == {*matrices}
    (alone,) = build_optimizers(model, LoopConfig(**{**vars(LOOP), "muon": 0.0}), (0.9, 0.999))
    assert sum(len(group["params"]) for group in alone.param_groups) == len(names)


def test_matrices_are_dealt_evenly_also_to_those_of_some_layers() -> None:
    matrices = [nn.Parameter(torch.zeros(*shape)) for shape in ((36, 12), (12, 12), (48, 12), (12, 48)) * 6]
    owners = shares_of(matrices, 2)
    for chosen in (matrices, matrices[:12], matrices[12:]):
        numbers = [sum(each.numel() for each in chosen if owners[each] == rank) for rank in range(2)]
        assert max(numbers) - min(numbers) <= 48 * 12
    assert set(shares_of(matrices, 1).values()) == {0}


def test_matrices_and_kernels_decay_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2), nn.Embedding(5, 2))
    decayed, others = parameter_groups(model, 0.1)
    assert [tuple(each.shape) for each in decayed["params"]] == [(4, 3, 3, 3), (2, 4)] and decayed["weight_decay"] == 0.1
    assert len(others["params"]) == 5 and others["weight_decay"] == 0


def test_a_process_without_a_matrix_takes_the_steps_of_others(monkeypatch) -> None:
    class Second(Processes):
        def share(self, own, like, owners, dtype):
            assert not own and owners == [0]
            return [torch.ones_like(like[0], dtype=dtype)]

    monkeypatch.setattr(muon, "current_processes", lambda: Second(1, 2))
    weight = nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.ones(4, 4)
    optimizer = Muon([(weight, 1)], 0.0, "float32")
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), -0.1 * muon.ADAM_STEP * 2))
