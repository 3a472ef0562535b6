"""The prediction of a step's memory against what a step of real tensors keeps."""

from __future__ import annotations

import copy
import dataclasses
import gc

import pytest
import test_training
import torch

from diptych.model.networks.architectures import build_transformer
from diptych.model.training.memory import (
    LiveBytes,
    SavedBytes,
    Shapes,
    like_a_gpu,
    optimizer_bytes,
    size_of,
    step_memory,
)
from diptych.model.training.optimisation import add_gradients, build_optimizers
from diptych.model.training.token import TokenSteps


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("caption_share", [0.0, 1.0], ids=["paint", "caption"])
@pytest.mark.parametrize("attention", ["prefix", "masked"])
def test_a_steps_memory_is_what_real_tensors_take(tiny, attention, caption_share, precision) -> None:
    config = dataclasses.replace(test_training.TOKEN, caption_share=caption_share, precision=precision)
    network = dataclasses.replace(tiny.config, caption_attention=attention, dropout=0.1)

    def pieces(model, codebook):
        steps = TokenSteps(config, model, tiny.tokenizer, codebook, tiny.train)
        torch.manual_seed(0)
        return steps.pieces(0, steps.read(0))

    model = build_transformer(network).train()
    real = pieces(model, tiny.codebook)
    gc.collect()
    saved = SavedBytes([*model.parameters(), *model.buffers()])
    with like_a_gpu(), LiveBytes() as live, saved:
        add_gradients(real)

    shapes = Shapes()
    with torch.device("meta"):
        fake = build_transformer(network)
    fake = shapes.network(fake).train()
    found = step_memory(shapes, config, fake, pieces(fake, shapes.tensor(12, 10)))
    assert found.weights == size_of([*model.parameters(), *model.buffers()])
    # numbers of words and masks are real on both sides, and counted on one
    assert found.saved == pytest.approx(saved.bytes, rel=0.02)
    assert found.working == pytest.approx(live.peak, rel=0.05)
    assert found.working >= found.saved > 0
    assert found.total == found.weights + found.optimizer + found.working
    codebook = shapes.tensor(12, 10)
    with_codebook = step_memory(shapes, config, fake, pieces(fake, codebook), codebook=codebook)
    assert with_codebook.weights == found.weights + 12 * 10 * 4


@pytest.mark.parametrize("muon", [0.0, 2.0])
def test_what_optimizers_keep_is_what_they_keep(tiny, muon) -> None:
    config = dataclasses.replace(test_training.TOKEN, muon=muon, ema_decay=0.0)
    model = copy.deepcopy(tiny.model)
    optimizers = build_optimizers(model, config, (0.9, 0.999))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    kept = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    assert optimizer_bytes(model, config) == size_of(kept)
    averaged = dataclasses.replace(config, ema_decay=0.9)
    assert optimizer_bytes(model, averaged) == size_of(kept) + size_of(model.parameters())
