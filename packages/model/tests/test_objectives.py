"""The losses against independent statements of them."""

from __future__ import annotations

import itertools

import torch

from diptych.model.objectives import (
    clip_loss,
    relaxed_painting,
    sample_mask,
    sampled_log_probabilities,
    scst_loss,
    smoothed_cross_entropy,
)


def test_label_smoothing_is_the_papers():
    logits, targets = torch.randn(7, 9), torch.randint(9, (7,))
    wanted = torch.full((7, 9), 0.2 / 8).scatter(1, targets[:, None], 0.8)
    expected = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, 0.2), expected)


def test_reward_and_metric_use_the_same_prompt():
    from diptych.eval import clip
    from diptych.model import objectives

    assert objectives.PROMPT == clip.PROMPT


def test_mask_ratios_are_uniform():
    torch.manual_seed(0)
    counts = sample_mask(6400, 64).sum(1)
    assert counts.min() == 1 and counts.max() == 64
    shares = torch.bincount((counts - 1) // 16, minlength=4) / 6400
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)
    most = sample_mask(6400, 64, least=0.5).sum(1)
    assert most.min() == 33 and most.max() == 64


def test_expected_scst_gradient_is_the_gradient_of_the_expected_reward(tiny):
    """All captions of at most two words over {., a, red}: the sum over them is the expectation, exactly.

    The gradient is compared with finite differences of the expected reward (UMT equation 2) in float64, once for
    each of a few weights.
    """
    model, tokenizer = tiny.model.double(), tiny.tokenizer
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
    rewards = torch.tensor([0.0, 1.0, 0.3, 2.0, 0.1, 0.7, 1.5], dtype=torch.float64)
    features = tiny.features[:1].double()

    def score():
        prefix = [states.expand(7, -1, -1) for states in model.encode_visual_prefix(features)]
        return sampled_log_probabilities(model, tokenizer, prefix, ids, 1.0)

    def expected_reward():
        with torch.no_grad():
            return float((score()[0].double().sum(1).exp() * rewards).sum())

    log_probabilities, words = score()
    assert words.sum(1).tolist() == [1, 2, 2, 2, 2, 2, 2]
    chances = log_probabilities.sum(1).exp().detach()
    assert abs(float(chances.sum()) - 1) < 1e-5
    baselines = torch.full((7,), 0.4, dtype=torch.float64)  # any constant: it must not bias the gradient
    loss = sum(
        chance * scst_loss(log_probabilities[i, None], words[i, None], rewards[i, None], baselines[i, None])
        for i, chance in enumerate(chances)
    )
    loss.backward()
    for weight, index in (
        (model.word_bias, (red,)),
        (model.cross_layers[1].text_feed_forward.outer.weight, (3, 5)),
        (model.visual_layers[0].attention.projection.weight, (60, 2)),
    ):
        with torch.no_grad():
            differences = []
            for delta in (1e-3, -2e-3):
                weight[index] += delta
                differences.append(expected_reward())
            weight[index] += 1e-3
        slope = (differences[0] - differences[1]) / 2e-3
        assert abs(-float(weight.grad[index]) - slope) < 1e-4 + 0.01 * abs(slope)


def test_nothing_after_the_full_stop_is_paid(tiny):
    prefix = tiny.model.encode_visual_prefix(tiny.features)
    log_probabilities, words = sampled_log_probabilities(tiny.model, tiny.tokenizer, prefix, tiny.ids, 1.0)
    for row, paid, values in zip(tiny.ids, words, log_probabilities, strict=True):
        assert int(paid.sum()) == len(tiny.tokenizer.words(row))
        assert (values[~paid] == 0).all() and (values[paid] < 0).all()


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
