"""Paintings of a transformer that regresses features: Gibbs sampling of X-LXMERT 4.1, beside a plain rewrite."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from architectures import both_architectures
from torch import Tensor

from diptych.model.decoding.cells import random_order
from diptych.model.decoding.decode import paint_features
from diptych.model.decoding.options import PaintOptions
from diptych.model.errors import UserError
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.unified import UnifiedTransformer


def regressing(tiny: SimpleNamespace) -> UnifiedTransformer:
    torch.manual_seed(3)
    model = build_transformer(dataclasses.replace(tiny.config, regresses=True)).eval().double()
    model.set_codebook(tiny.codebook)
    return model


def plainly(model: UnifiedTransformer, tiny: SimpleNamespace, row: int, order: list[int]) -> Tensor:
    """One cell after the other, by whole forward passes over one caption."""
    ids = tiny.ids[row : row + 1]
    visible = ids != tiny.tokenizer.pad
    masked = torch.ones(1, 16, dtype=torch.bool)
    features = torch.zeros(1, 16, 10)
    embedding = model.visual_embedding
    for cell in order:
        masked[0, cell] = True
        _, states = model(ids, visible, features, masked)
        predicted = model.feature_head(states[0, cell])
        features[0, cell] = predicted * embedding.feature_scale + embedding.feature_mean
        masked[0, cell] = False
    return features[0]


@both_architectures
@pytest.mark.parametrize("extra", [0, 7])
@torch.no_grad()
def test_cells_are_predicted_from_the_text_and_the_cells_before(tiny, extra: int) -> None:
    model, seeds = regressing(tiny), [5, 6, 7]
    options = PaintOptions(method="random", extra_steps=extra)
    found = paint_features(model, tiny.tokenizer, tiny.ids, options, seeds)
    assert found.shape == (3, 16, 10) and found.dtype == torch.float32
    orders = random_order(torch.ones(3, 16, dtype=torch.bool), seeds, extra)[:, :, 0].tolist()
    for row, order in enumerate(orders):
        assert len(order) == 16 + extra and set(order) == set(range(16))
        expected = plainly(model, tiny, row, order).float()
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
    by_rows = paint_features(model, tiny.tokenizer, tiny.ids[1:2], PaintOptions(method="rows"), seeds[:1])
    expected = plainly(model, tiny, 1, list(range(16))).float()
    torch.testing.assert_close(by_rows[0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(by_rows[0], found[1], atol=1e-3), "the order counts"


@pytest.mark.parametrize(
    "options",
    [
        PaintOptions(),
        PaintOptions(method="easiest"),
        PaintOptions(method="random", guidance=2.0),
        PaintOptions(method="rows", temperature=1.0),
        PaintOptions(method="gibbs", temperature=1.0),
    ],
)
def test_what_a_regression_cannot_do_is_named(tiny, options: PaintOptions) -> None:
    with pytest.raises(UserError, match="regresses features paints cell by cell, by method rows or random"):
        paint_features(regressing(tiny), tiny.tokenizer, tiny.ids, options, [1, 2, 3])


def test_a_transformer_of_codes_has_no_features_to_paint(tiny) -> None:
    with pytest.raises(UserError, match="no head that regresses features"):
        paint_features(tiny.model, tiny.tokenizer, tiny.ids, PaintOptions(method="rows"), [1, 2, 3])
