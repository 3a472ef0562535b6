"""SCST and the losses of whole pictures against independent statements of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from architectures import both_architectures

from diptych.model.decoding.caption import encode_images
from diptych.model.decoding.paint import paint_codes
from diptych.model.networks.architectures import build_transformer
from diptych.model.objectives.scst import WORDS_PER_PASS, UnifiedPolicy, paid_words
from diptych.model.objectives.sequence import clip_loss, feature_loss, relaxed_painting


def test_reward_and_metric_use_the_same_prompt():
    from diptych.eval.scorers import clip
    from diptych.model.objectives import sequence as sequence_objectives

    assert sequence_objectives.PROMPT == clip.PROMPT


def backward(parts) -> float:
    """Run parts one after the other, as training does; returns their sum."""
    total = 0.0
    for compute in parts:
        loss = compute()
        loss.backward()
        total += float(loss.detach())
    return total


def plain_log_probabilities(model, tokenizer, features, ids):
    """Of each caption, float64 ``[n]``, word by word from full forward passes."""
    rows = []
    for image, row in zip(features, ids, strict=True):
        words = tokenizer.words(row)
        total = torch.zeros((), dtype=torch.float64)
        for position, word in enumerate(words, 1):
            before = row[None, :position]
            if model.config.caption_attention == "prefix":
                logits = model.caption_logits(before, model.encode_visual_prefix(image[None]))[0, -1]
            else:
                shown = torch.cat([before, torch.tensor([[tokenizer.mask]])], 1)
                text, _ = model(shown, torch.ones_like(shown, dtype=torch.bool), image[None])
                logits = model.word_logits(text)[0, -1]
            logits = logits.index_fill(-1, tokenizer.forbidden, float("-inf"))
            total = total + logits.log_softmax(-1)[word]
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["prefix", "masked"])
def test_expected_scst_gradient_is_the_gradient_of_the_expected_reward(tiny, attention):
    """All captions of at most two words over {., a, red}: the sum over them is the expectation, exactly.

    The gradient is compared with finite differences of the expected reward (UMT equation 2) in float64, once for
    each of a few weights.
    """
    model, tokenizer = tiny.model.double(), tiny.tokenizer
    model.config = replace(model.config, caption_attention=attention)
    a, red = tokenizer.encode(["a red"], 6)[0, 1:3].tolist()
    stop, sep, pad = tokenizer.stop, tokenizer.sep, tokenizer.pad
    other = torch.ones(len(tokenizer), dtype=torch.bool)
    other[[a, red, stop]] = False
    with torch.no_grad():
        model.word_bias[other] = -1e4  # nothing else can be written
    rows = [[tokenizer.cls, stop, sep, pad]]
    rows += [
        [tokenizer.cls, first, second, sep] for first, second in itertools.product((a, red), (a, red, stop))
    ]
    ids = torch.tensor(rows)
    assert paid_words(tokenizer, ids).sum(1).tolist() == [1, 2, 2, 2, 2, 2, 2]
    rewards = torch.tensor([0.0, 1.0, 0.3, 2.0, 0.1, 0.7, 1.5], dtype=torch.float64)
    features = tiny.features[:1].double()

    @torch.no_grad()
    def chances():
        return plain_log_probabilities(model, tokenizer, features.expand(7, -1, -1), ids).exp()

    likely = chances()
    assert abs(float(likely.sum()) - 1) < 1e-9
    # Any constant baseline: it must not bias the gradient. A mean over 7 captions, hence the factor.
    advantages = 7 * likely * (rewards - 0.4)
    backward(UnifiedPolicy(model, tokenizer).losses(encode_images(model, features), ids, advantages, 1.0))
    for weight, index in (
        (model.word_bias, (red,)),
        (model.cross_layers[1].text_feed_forward.outer.weight, (3, 5)),
        (model.visual_layers[0].attention.projection.weight, (60, 2)),
    ):
        with torch.no_grad():
            expected_rewards = []
            for delta in (1e-3, -2e-3):
                weight[index] += delta
                expected_rewards.append(float((chances() * rewards).sum()))
            weight[index] += 1e-3
        slope = (expected_rewards[0] - expected_rewards[1]) / 2e-3
        assert abs(-float(weight.grad[index]) - slope) < 1e-7 + 1e-3 * abs(slope)


@both_architectures
@pytest.mark.parametrize("attention", ["prefix", "masked"])
def test_parts_add_up_to_the_loss_and_its_gradient(tiny, attention):
    """Several captions per image, of unlike length, longer than what one pass takes; nothing after the full stop."""
    model, tokenizer = tiny.model.double(), tiny.tokenizer
    model.config = replace(model.config, caption_attention=attention)
    texts = ["a red kite floats over a red kite.", "a kite.", "a red", "kite a kite a kite a kite."]
    ids = tokenizer.encode(texts, 16)
    features, advantages = (
        tiny.features[:2].double(),
        torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64),
    )
    total = backward(UnifiedPolicy(model, tokenizer).losses(encode_images(model, features), ids, advantages, 1.0))
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert int(paid_words(tokenizer, ids).sum(1).max()) > WORDS_PER_PASS
    model.zero_grad()
    scores = plain_log_probabilities(model, tokenizer, features.repeat_interleave(2, 0), ids)
    loss = -(advantages * scores).mean()
    loss.backward()
    assert total == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, weight in model.named_parameters():
        if weight.grad is not None and weight.grad.abs().max() > 0:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_clip_loss_reaches_only_the_transformer(tiny):
    generator, scorer = tiny.generator.requires_grad_(False), tiny.scorer.requires_grad_(False)
    vectors = relaxed_painting(tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 1.0, 1.0)
    loss = clip_loss(vectors, tiny.texts, generator, scorer)
    assert -1 <= loss.item() < 0
    loss.backward()
    assert scorer.texts[0] == "A photo depicts a red kite floats."
    assert tiny.model.code_head.codes.weight.grad.abs().sum() > 0
    assert tiny.model.text_embedding.words.weight.grad.abs().sum() > 0
    frozen = [*generator.parameters(), *scorer.parameters(), tiny.codebook]
    assert all(tensor.grad is None for tensor in frozen)


@both_architectures
def test_vectors_and_gradients_are_those_of_all_steps_kept(tiny):
    """Running a step again for its gradient changes nothing."""

    def gradients(recompute):
        tiny.model.zero_grad()
        torch.manual_seed(5)
        vectors = relaxed_painting(
            tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 2.0, 1.0, recompute=recompute
        )
        vectors.square().mean().backward()
        return vectors.detach(), {
            n: w.grad.clone() for n, w in tiny.model.named_parameters() if w.grad is not None
        }

    vectors, again = gradients(True)
    kept_vectors, kept = gradients(False)
    assert vectors.equal(kept_vectors) and again.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-8)


def test_straight_through_paints_codes_with_the_soft_gradient(tiny):
    torch.manual_seed(0)
    vectors = relaxed_painting(tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 1.0, 1.0, True)
    distances = (vectors.detach()[:, :, None] - tiny.codebook).norm(dim=-1)
    assert distances.min(-1).values.max() < 1e-5, "every vector is one of the codebook"
    vectors.square().mean().backward()
    assert tiny.model.code_head.codes.weight.grad.abs().sum() > 0


@both_architectures
def test_a_cold_painter_paints_what_decoding_paints(tiny):
    with torch.no_grad():
        vectors = relaxed_painting(
            tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 2.0, 1.0, True, 1e-4
        )
        codes = paint_codes(tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 2.0).codes
    torch.testing.assert_close(vectors, tiny.codebook[codes], rtol=1e-4, atol=1e-4)


def test_feature_loss_is_the_squared_error_in_units_of_the_codebook(tiny):
    vectors, features = torch.randn(2, 16, 10), torch.randn(2, 16, 10)
    variance = (tiny.codebook - tiny.codebook.mean(0)).square().mean()
    expected = ((vectors - features) ** 2).mean() / variance
    torch.testing.assert_close(feature_loss(vectors, features, tiny.codebook), expected)
    scaled = feature_loss(vectors * 7, features * 7, tiny.codebook * 7)
    torch.testing.assert_close(scaled, expected)


def test_relaxed_codes_harden_as_the_temperature_falls(tiny):
    vectors = relaxed_painting(tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 1.0, 1e-4)
    distances = torch.cdist(vectors.flatten(0, 1), tiny.codebook)
    assert distances.min(1).values.median() < 1e-3


def test_a_step_along_the_clip_gradient_lowers_the_loss(tiny):
    generator, scorer = tiny.generator.requires_grad_(False), tiny.scorer.requires_grad_(False)
    parameters = list(tiny.model.parameters())
    optimizer = torch.optim.Adam(parameters, 3e-3)

    def loss():
        torch.manual_seed(3)
        vectors = relaxed_painting(tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids, 4, 1.0, 1.0)
        return clip_loss(vectors, tiny.texts, generator, scorer)

    before = loss().item()
    for _ in range(15):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before - 0.02


@pytest.mark.parametrize(("dropout", "training", "encoded"), [(0.3, True, [2, 2]), (0.3, False, [1, 2]), (0.0, True, [1, 2])])
def test_pictures_share_a_first_step_only_where_nothing_is_dropped(tiny, monkeypatch, dropout, training, encoded):
    model = build_transformer(replace(tiny.model.config, dropout=dropout)).train(training)
    model.set_codebook(tiny.codebook)
    pictures, encode = [], model.encode_visual
    monkeypatch.setattr(model, "encode_visual", lambda features, masked: (pictures.append(len(features)), encode(features, masked))[1])
    relaxed_painting(model, tiny.tokenizer, tiny.codebook, tiny.ids[:2], 2, 1.0, 1.0, recompute=False)
    assert pictures == encoded
