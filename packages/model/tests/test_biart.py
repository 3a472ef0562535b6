"""BiART: both orders, what sees what, caches, shared references, samples, losses, training."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.model.decoding import biart as decoding
from diptych.model.decoding.biart import caption_codes, paint_texts
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import FixedCells
from diptych.model.errors import UserError
from diptych.model.networks.biart import GENERATED, REFERENCE, BiART, named_config
from diptych.model.objectives.bidirectional import caption_losses, painting_losses
from diptych.model.objectives.near_codes import NearCodes
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.biart import BiARTSteps, BiARTTrainingConfig, train_biart
from diptych.model.training.optimisation import add_gradients

LENGTH, K = 12, 7
CODEBOOK = torch.randn(K, 3, generator=torch.Generator().manual_seed(0))
CAPTIONS = [
    ["a red kite floats.", "a kite that is red."],
    ["two blue boats rest on the sea.", "some boats of blue."],
    ["a green house stands alone.", "one green house."],
]


class Tokens:
    """Images of 16 codes, drawn by chance, with captions."""

    def __init__(self, images: int) -> None:
        self.keys = [f"{index:06d}" for index in range(images)]
        self.all_codes = np.random.default_rng(0).integers(0, K, (images, 16))

    def __len__(self) -> int:
        return len(self.keys)

    def codes(self, indices):
        return self.all_codes[indices]

    def captions(self, index: int) -> list[str]:
        return CAPTIONS[index % len(CAPTIONS)]


CONFIG = BiARTTrainingConfig(
    steps=40,
    learning_rate=3e-3,
    warmup_share=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="float32",
    seed=3,
    checkpoint_seconds=60,
    caption_share=0.5,
    caption_batch_size=6,
    captions_per_image=2,
    paint_batch_size=6,
    caption_length=LENGTH,
)


@pytest.fixture(params=[True, False], ids=["rows and columns", "cells"])
def small(request) -> SimpleNamespace:
    """A BiART with weights that are not near zero, and images of 16 codes with captions of unlike lengths."""
    tokenizer = build_tokenizer([caption for captions in CAPTIONS for caption in captions], 1)
    torch.manual_seed(0)
    config = named_config("smoke", vocab_size=len(tokenizer), codebook_size=K, grid_size=4)
    model = BiART(dataclasses.replace(config, cell_positions=request.param, initial_std=0.3)).eval()
    train = Tokens(6)
    codes = torch.from_numpy(train.codes([0, 1, 2]))
    ids = tokenizer.encode([captions[0] for captions in CAPTIONS], LENGTH)
    return SimpleNamespace(model=model, tokenizer=tokenizer, train=train, codes=codes, ids=ids)


def whole(model: BiART, tokens: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
    """One causal pass over a whole sequence, layer by layer, by plain functions."""
    length = tokens.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if visible is not None:
        seen = seen & visible[:, None, None]
    for layer in model.layers:
        attention = layer.attention
        q, k, v = attention.projection(layer.attention_norm(tokens)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        tokens = tokens + attention.output(mixed)
        tokens = tokens + layer.outer(F.gelu(layer.inner(layer.feed_forward_norm(tokens))))
    return model.norm(tokens)


def text_then_image(small: SimpleNamespace, ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    visible = torch.cat([ids != small.tokenizer.pad, torch.ones_like(codes, dtype=torch.bool)], 1)
    tokens = [small.model.text_tokens(ids, REFERENCE), small.model.image_tokens(codes[:, :-1], GENERATED)]
    return whole(small.model, torch.cat(tokens, 1), visible)


def test_losses_of_both_orders_are_those_of_one_pass_over_the_whole_sequence(small) -> None:
    model, ids, codes, pad = small.model, small.ids, small.codes, small.tokenizer.pad
    states = text_then_image(small, ids, codes)
    image = F.cross_entropy(model.code_head(states[:, LENGTH:]).flatten(0, 1), codes.flatten())
    text = F.cross_entropy(
        model.word_head(states[:, : LENGTH - 1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad
    )
    found = painting_losses(model, small.tokenizer, codes, ids, 0.0, True)
    assert [float(loss.detach()) for loss in found] == pytest.approx([float(image.detach()), float(text.detach())], rel=1e-5)
    assert painting_losses(model, small.tokenizer, codes, ids, 0.0, False)[1] is None

    captions = torch.stack([ids, ids.roll(1, 0)], 1)  # two captions of each image
    losses = []
    for place in range(2):
        own = captions[:, place]
        tokens = [model.image_tokens(codes, REFERENCE), model.text_tokens(own[:, :-1], GENERATED)]
        states = whole(model, torch.cat(tokens, 1))
        losses.append(F.cross_entropy(model.word_head(states[:, 17:]).mT, own[:, 1:], ignore_index=pad, reduction="none"))
        image = F.cross_entropy(model.code_head(states[:, :16]).flatten(0, 1), codes.flatten())
    text = torch.stack(losses).sum() / (captions[..., 1:] != pad).sum()
    found = caption_losses(model, small.tokenizer, codes, captions, 0.0, True)
    assert [float(loss.detach()) for loss in found] == pytest.approx([float(text.detach()), float(image.detach())], rel=1e-5)


def test_segments_tell_reference_from_generated(small) -> None:
    tokens = [small.model.image_tokens(small.codes, segment) for segment in (REFERENCE, GENERATED)]
    difference = small.model.segments.weight[1] - small.model.segments.weight[0]
    assert torch.allclose(tokens[1] - tokens[0], difference.expand_as(tokens[0]), atol=1e-6)


def greedy_by_whole_passes(small: SimpleNamespace) -> torch.Tensor:
    codes = torch.zeros_like(small.codes)
    for cell in range(16):
        states = text_then_image(small, small.ids, codes)
        codes[:, cell] = small.model.code_head(states[:, LENGTH + cell]).argmax(-1)
    return codes


@torch.no_grad()
def test_cached_paintings_are_those_of_whole_passes(small) -> None:
    painted = paint_texts(small.model, small.tokenizer, small.ids, PaintOptions(method="rows"))
    assert painted.codes.equal(greedy_by_whole_passes(small)) and painted.steps is None


@torch.no_grad()
def test_cached_captions_are_those_of_whole_passes(small) -> None:
    model, tokenizer = small.model, small.tokenizer
    found = caption_codes(model, tokenizer, small.codes, CaptionOptions(length=LENGTH))
    for row, codes in enumerate(small.codes):
        ids = [tokenizer.cls]
        while len(ids) < LENGTH - 1 and ids[-1] != tokenizer.stop:
            tokens = torch.tensor([ids])
            sequence = [model.image_tokens(codes[None], REFERENCE), model.text_tokens(tokens, GENERATED)]
            logits = model.word_head(whole(model, torch.cat(sequence, 1))[0, -1])
            logits[tokenizer.forbidden] = -torch.inf
            ids.append(int(logits.argmax()))
        assert found.ids[row, : len(ids)].tolist() == ids


@torch.no_grad()
def test_beams_and_samples_share_the_image(small) -> None:
    options = CaptionOptions(length=LENGTH, method="beam", beams=3, samples=2)
    beams = caption_codes(small.model, small.tokenizer, small.codes, options)
    alone = [caption_codes(small.model, small.tokenizer, row[None], options).ids for row in small.codes]
    assert beams.ids.equal(torch.cat(alone))
    options = CaptionOptions(length=LENGTH, method="sample", samples=3, start="a", top_k=4)
    sampled = caption_codes(small.model, small.tokenizer, small.codes, options, [4, 5, 6])
    assert sampled.ids.shape == (9, LENGTH)
    last = caption_codes(small.model, small.tokenizer, small.codes[2:], options, [6])
    assert sampled.ids[6:].equal(last.ids)


@torch.no_grad()
def test_samples_belong_to_their_caption_and_memory_is_bounded(small, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PaintOptions(method="rows", temperature=1.0, samples=4)
    together = paint_texts(small.model, small.tokenizer, small.ids, options, [1, 2, 3]).codes
    assert together.shape == (12, 16) and len({tuple(row) for row in together.tolist()}) == 12
    rows: list[int] = []
    paint_rows = decoding.paint_rows

    def counted(model, texts, samples, *rest):
        rows.append(len(texts[0]) * samples)
        return paint_rows(model, texts, samples, *rest)

    monkeypatch.setattr(decoding, "paint_rows", counted)
    config = small.model.config
    one = 8 * config.layers * config.width * config.cells
    for most, wanted in ((12, [12]), (8, [8, 4]), (3, [3, 1] * 3)):
        rows.clear()
        monkeypatch.setattr(decoding, "CACHE_BYTES", most * one)
        codes = paint_texts(small.model, small.tokenizer, small.ids, options, [1, 2, 3]).codes
        assert rows == wanted and codes.equal(together)


@torch.no_grad()
def test_guidance_moves_away_from_no_text(small) -> None:
    guided = PaintOptions(method="rows", guidance=3.0)
    plain = paint_texts(small.model, small.tokenizer, small.ids, PaintOptions(method="rows")).codes
    one = paint_texts(small.model, small.tokenizer, small.ids, dataclasses.replace(guided, guidance=1.0)).codes
    assert one.equal(plain)
    first = paint_texts(small.model, small.tokenizer, small.ids, guided).codes[:, 0]
    nothing = small.tokenizer.no_text(3)
    with_text = small.model.code_head(text_then_image(small, small.ids, small.codes)[:, LENGTH])
    without = small.model.code_head(text_then_image(small, nothing, small.codes)[:, 2])
    assert first.equal((without + 3 * (with_text - without)).argmax(-1))


@torch.no_grad()
def test_codes_are_drawn_from_those_that_the_filters_leave(small) -> None:
    options = PaintOptions(method="rows", temperature=1.0, samples=40, top_k=2)
    codes = paint_texts(small.model, small.tokenizer, small.ids[:1], options, [5]).codes
    logits = small.model.code_head(text_then_image(small, small.ids[:1], small.codes[:1])[:, LENGTH])
    assert set(codes[:, 0].tolist()) == set(logits[0].topk(2).indices.tolist())


def test_pieces_add_up_to_the_gradient_of_the_whole_batch(small) -> None:
    gradients = {}
    for accumulation in (1, 3):
        config = dataclasses.replace(CONFIG, accumulation=accumulation, paint_batch_size=5, caption_batch_size=4)
        steps = BiARTSteps(config, small.model, small.tokenizer, small.train, CODEBOOK, torch.device("cpu"))
        for step in (0, 1):
            torch.manual_seed(2)
            small.model.zero_grad()
            loss, reported = add_gradients(steps.pieces(step, steps.read(step)))
            flat = torch.cat([p.grad.flatten() for p in small.model.parameters() if p.grad is not None])
            gradients.setdefault(step, []).append((flat, loss, sorted(reported)))
    for (first, loss, names), (second, other, same) in gradients.values():
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-5) and torch.allclose(loss, other, rtol=1e-5)
        assert names == same
    assert gradients[0][0][2] == ["paint_loss", "text_reference_loss"]
    assert gradients[1][0][2] == ["caption_loss", "image_reference_loss"]


def test_training_learns_both_ways(small) -> None:
    model = BiART(dataclasses.replace(small.model.config, initial_std=0.05))
    # three images, each with captions of its own: all can be known by heart
    small.train.all_codes[3:] = small.train.all_codes[:3]
    config = dataclasses.replace(CONFIG, steps=320, muon=1.0)
    record = train_biart(config, model, small.tokenizer, small.train, CODEBOOK, None, "cpu")
    first, last = record.history[0], record.history[-1]
    assert last["caption_loss"] < 0.3 * first["caption_loss"]
    assert last["paint_loss"] < 0.3 * first["paint_loss"]
    painted = paint_texts(model, small.tokenizer, small.ids, PaintOptions(method="rows")).codes
    assert float((painted == small.codes).float().mean()) > 0.9
    captions = caption_codes(model, small.tokenizer, small.codes, CaptionOptions(length=LENGTH))
    texts = [small.tokenizer.decode(ids) for ids in captions.ids]
    assert all(text in own for text, own in zip(texts, CAPTIONS, strict=True)), texts


def test_the_paper_s_size() -> None:
    with torch.device("meta"):
        model = BiART(named_config("base", vocab_size=49_808, codebook_size=8192, grid_size=32))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(500e6, rel=0.3), parameters


def test_what_does_not_fit_is_named(small) -> None:
    with pytest.raises(UserError, match="has 16 codes, but this transformer was built for 64"):
        model = BiART(dataclasses.replace(small.model.config, grid_size=8))
        train_biart(CONFIG, model, small.tokenizer, small.train, CODEBOOK, None, "cpu")
    with pytest.raises(UserError, match="caption_length must be from 3 to the transformer's 24 text positions, is 40"):
        config = dataclasses.replace(CONFIG, caption_length=40)
        train_biart(config, small.model, small.tokenizer, small.train, CODEBOOK, None, "cpu")
    with pytest.raises(UserError, match="by method rows, not mask_predict"):
        paint_texts(small.model, small.tokenizer, small.ids, PaintOptions())
    with pytest.raises(UserError, match="there is no caption to paint"):
        paint_texts(small.model, small.tokenizer, small.ids[:0], PaintOptions(method="rows"))
    with pytest.raises(UserError, match="there is no image to caption"):
        caption_codes(small.model, small.tokenizer, small.codes[:0], CaptionOptions(length=LENGTH))
    with pytest.raises(UserError, match="no BiART is named 'huge'"):
        named_config("huge")
    with pytest.raises(UserError, match=r"BiART config: heads \(3\) must divide width \(32\)"):
        dataclasses.replace(small.model.config, heads=3)
    with pytest.raises(UserError, match="biart_smoke.json: BiART key 'vocab_size' is missing"):
        named_config("smoke", codebook_size=K, grid_size=4)
    with pytest.raises(UserError, match="reference_weight must be at least 0"):
        dataclasses.replace(CONFIG, reference_weight=-1.0)


# What a packaged model asks for


def test_given_cells_stay_and_are_seen_by_what_follows(small) -> None:
    options = PaintOptions(method="rows", temperature=1.0, samples=2)
    seeds = [1, 2, 3]
    free = paint_texts(small.model, small.tokenizer, small.ids, options, seeds).codes
    fixed = torch.zeros(3, 16, dtype=torch.bool)
    fixed[:, [0, 5]] = True
    given = FixedCells(small.codes, fixed)
    painted = paint_texts(small.model, small.tokenizer, small.ids, options, seeds, given).codes
    wanted = small.codes.repeat_interleave(2, 0)
    assert painted[:, [0, 5]].equal(wanted[:, [0, 5]]) and not painted.equal(free)
    everything = FixedCells(small.codes, torch.ones_like(fixed))
    assert paint_texts(small.model, small.tokenizer, small.ids, options, seeds, everything).codes.equal(wanted)
    # cells before the first given one see nothing of it
    late = torch.zeros_like(fixed)
    late[:, 9] = True
    painted = paint_texts(small.model, small.tokenizer, small.ids, options, seeds, FixedCells(small.codes, late)).codes
    assert painted[:, :9].equal(free[:, :9])
    with pytest.raises(UserError, match="fixed cells"):
        paint_texts(small.model, small.tokenizer, small.ids, options, seeds, FixedCells(small.codes + K, fixed))


def test_steps_are_rows_of_cells(small) -> None:
    options = PaintOptions(method="rows", temperature=1.0, samples=2)
    last = torch.zeros(3, 16, dtype=torch.bool)
    last[:, 15] = True
    painted = paint_texts(
        small.model, small.tokenizer, small.ids, options, [1, 2, 3], FixedCells(small.codes, last), keep_steps=True
    )
    assert painted.steps is not None and painted.steps.shape == (6, 4, 16)
    assert painted.steps[:, -1].equal(painted.codes)
    for row in range(4):
        known = painted.steps[:, row] >= 0
        assert known[:, : 4 * row + 4].all() and not known[:, 4 * row + 4 : 15].any() and known[:, 15].all()


def test_where_words_look_is_what_attention_gives_to_cells(small) -> None:
    """Against weights over the whole sequence, [SOI] and words included, computed layer by layer."""
    model, n, t = small.model, 3, LENGTH - 1
    image = model.read_image(small.codes)[1]
    found = model.attention_to_image(small.ids[:, :-1], image)
    assert found.shape == (n, t, 16)
    torch.testing.assert_close(found.sum(-1), torch.ones(n, t))
    tokens = torch.cat([model.image_tokens(small.codes, REFERENCE), model.text_tokens(small.ids[:, :-1], GENERATED)], 1)
    hidden = torch.ones(17 + t, 17 + t).triu(1).bool()
    shares = []
    for layer in model.layers:
        queries, keys, _ = layer.attention.project(layer.attention_norm(tokens))
        scores = (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).masked_fill(hidden, -1e9)
        cells = scores.softmax(-1)[:, :, 17:, 1:17].mean(1)
        shares.append(cells / cells.sum(-1, keepdim=True))
        tokens, _ = layer(tokens, torch.zeros(hidden.shape).masked_fill(hidden, -1e9))
    torch.testing.assert_close(found, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-5)


def test_hidden_codes_are_learned_and_not_seen(small) -> None:
    """What follows a hidden code does not depend on it; its own loss does."""
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[:, 4] = True
    other = small.codes.clone()
    other[:, 4] = (other[:, 4] + 1) % K

    def states(codes: torch.Tensor) -> torch.Tensor:
        model, ids = small.model, small.ids
        text = model.read_text(ids, ids != small.tokenizer.pad)[1]
        seen = codes.masked_fill(hidden, K)
        return model.write(model.image_tokens(seen[:, :-1], GENERATED), text)

    assert states(small.codes).equal(states(other))

    def loss(codes: torch.Tensor, hidden: torch.Tensor | None) -> float:
        return float(painting_losses(small.model, small.tokenizer, codes, small.ids, 0.0, False, hidden)[0].detach())

    logits = small.model.code_head(states(other)).log_softmax(-1)
    expected = -logits.gather(-1, other[..., None]).mean()
    assert loss(other, hidden) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert loss(other, hidden) != pytest.approx(loss(other, None), rel=1e-4)
    config = dataclasses.replace(CONFIG, code_drop=1.0, caption_share=0.0)
    found = []
    for accumulation in (1, 2):
        steps = BiARTSteps(
            dataclasses.replace(config, accumulation=accumulation), small.model, small.tokenizer, small.train, CODEBOOK, torch.device("cpu")
        )
        torch.manual_seed(0)
        small.model.zero_grad()
        found.append(float(add_gradients(steps.pieces(0, steps.read(0)))[0]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_targets_are_shared_by_codes_alike(small) -> None:
    """A dense restatement; a small spread is the plain loss, and a training that shares targets is another run."""
    near = NearCodes.of(CODEBOOK, 0.8)
    squared = (CODEBOOK[:, None] - CODEBOOK).square().sum(-1)
    nearest = (squared + 1e9 * torch.eye(K)).amin(1).median()
    targets = (-squared / (0.8 * nearest)).softmax(-1)
    logits, codes = torch.randn(9, K), torch.arange(9) % K
    expected = F.cross_entropy(logits, targets[codes])
    assert float(near.cross_entropy(logits, codes)) == pytest.approx(float(expected), rel=1e-4)
    plain = NearCodes.of(CODEBOOK, 1e-3).cross_entropy(logits, codes)
    assert float(plain) == pytest.approx(float(F.cross_entropy(logits, codes)), rel=1e-4)
    config = dataclasses.replace(CONFIG, caption_share=0.0)
    losses = []
    for spread in (0.0, 2.0):
        own = dataclasses.replace(config, code_spread=spread)
        steps = BiARTSteps(own, small.model, small.tokenizer, small.train, CODEBOOK, torch.device("cpu"))
        torch.manual_seed(0)
        losses.append(float(add_gradients(steps.pieces(0, steps.read(0)))[0]))
        small.model.zero_grad()
    assert abs(losses[0] - losses[1]) > 1e-3
    with pytest.raises(UserError, match="code_spread must be at least 0"):
        dataclasses.replace(CONFIG, code_spread=-1.0)


def test_a_large_codebook_has_few_neighbours_each() -> None:
    near = NearCodes.of(torch.randn(3000, 4), 1.0)
    assert near.near.shape == near.shares.shape == (3000, 16)
    assert near.near[:, 0].equal(torch.arange(3000))
    torch.testing.assert_close(near.shares.sum(1), torch.ones(3000))
