"""Both decoders: exact against plain recomputation, seeded per item."""

from __future__ import annotations

import pytest
import torch
from architectures import both_architectures

from diptych.model.decoding.caption import decode_captions, word_log_probabilities
from diptych.model.decoding.noise import sample_from, uniform_noise
from diptych.model.decoding.paint import PaintText, mask_predict_counts, paint_codes


def test_sampling_inverts_the_distribution():
    probabilities = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3])
    noise = uniform_noise(range(4000), 5, device=torch.device("cpu"))
    drawn = sample_from(probabilities.log().expand(4000, 5, 5), noise)
    shares = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.015)
    assert shares[0] == shares[3] == 0


@both_architectures
def test_greedy_captions_equal_uncached_decoding(tiny):
    model, tokenizer, length = tiny.model, tiny.tokenizer, 10
    prefix = model.encode_visual_prefix(tiny.features)
    captions = decode_captions(model, tokenizer, prefix, length)
    for i in range(3):
        ids, total = [tokenizer.cls], 0.0
        while len(ids) < length - 1 and ids[-1] != tokenizer.stop:
            logits = model.caption_logits(torch.tensor([ids]), [states[i : i + 1] for states in prefix])[
                0, -1
            ]
            choices = word_log_probabilities(logits, tokenizer)
            ids.append(int(choices.argmax()))
            total += choices.max().item()
        row = [*ids, tokenizer.sep] + [tokenizer.pad] * (length - len(ids) - 1)
        assert captions.ids[i].tolist() == row
        assert captions.log_probabilities[i].sum().item() == pytest.approx(total, abs=1e-4)


@both_architectures
def test_sampled_captions_belong_to_their_seed_and_stop_row_by_row(tiny):
    model, tokenizer = tiny.model, tiny.tokenizer
    with torch.no_grad():  # make full stops likely, so that rows end at different steps
        model.word_bias[tokenizer.stop] += 3
        prefix = model.encode_visual_prefix(tiny.features[[0, 1, 2, 0, 1, 2]])
    together = decode_captions(model, tokenizer, prefix, 12, temperature=1.5, seeds=[5, 6, 7, 8, 9, 10])
    ends = (together.ids == tokenizer.sep).int().argmax(1)
    assert len(set(ends.tolist())) > 1
    for i in range(6):
        one = [states[i : i + 1] for states in prefix]
        alone = decode_captions(model, tokenizer, one, 12, temperature=1.5, seeds=[5 + i])
        assert alone.ids[0].equal(together.ids[i])
        torch.testing.assert_close(
            alone.log_probabilities[0], together.log_probabilities[i], rtol=1e-4, atol=1e-4
        )
        assert (together.ids[i, ends[i] + 1 :] == tokenizer.pad).all()
        assert (together.log_probabilities[i, ends[i] :] == 0).all()
    assert not torch.isin(together.ids[:, 1:-1], tokenizer.forbidden[[1, 2, 4]]).any()


def test_mask_predict_schedule():
    assert mask_predict_counts(64, 4) == [64, 48, 32, 16]
    assert mask_predict_counts(4, 4) == [4, 3, 2, 1]


@both_architectures
def test_painting_equals_a_plain_mask_predict(tiny):
    """Against a float64 rewrite that encodes every step in full and keeps confidences by the same rule."""
    model, codebook = tiny.model.double(), tiny.codebook.double()
    result = paint_codes(model, tiny.tokenizer, codebook, tiny.ids, steps=4, guidance=1.7, keep_steps=True)

    def all_logits(ids, features, masked):
        text, bias = model.encode_text(ids, ids != tiny.tokenizer.pad)
        visual = model.encode_visual(features, masked)
        return model.paint_logits(text, bias, visual, torch.ones_like(masked)).view(1, 16, -1)

    empty = tiny.tokenizer.no_text(1)
    for i, ids in enumerate(tiny.ids):
        codes, confidence = torch.zeros(16, dtype=torch.int64), torch.zeros(16)
        for step, count in enumerate([16, 12, 8, 4]):
            masked = torch.zeros(1, 16, dtype=torch.bool)
            masked[0, confidence.argsort(stable=True)[:count]] = True
            free = all_logits(empty, codebook[codes][None], masked)
            logits = free + 1.7 * (all_logits(ids[None], codebook[codes][None], masked) - free)
            probability, best = logits[0].float().softmax(-1).max(-1)
            codes = torch.where(masked[0], best, codes)
            confidence = torch.where(masked[0], probability, confidence)
            assert result.steps[i, step].equal(codes)
        assert result.codes[i].equal(codes)


@both_architectures
def test_guidance_of_one_is_the_plain_model(tiny):
    masked = torch.ones(3, 16, dtype=torch.bool)
    positions = torch.arange(16).expand(3, 16)
    features = tiny.codebook[torch.zeros(3, 16, dtype=torch.int64)]
    plain = PaintText(tiny.model, tiny.tokenizer, tiny.ids).logits(features, masked, positions)
    almost = PaintText(tiny.model, tiny.tokenizer, tiny.ids, guidance=1 + 1e-6).logits(
        features, masked, positions
    )
    torch.testing.assert_close(almost, plain, rtol=1e-4, atol=1e-4)
    empty = PaintText(tiny.model, tiny.tokenizer, tiny.ids, guidance=0).logits(features, masked, positions)
    torch.testing.assert_close(empty[0], empty[2])
    assert not torch.allclose(plain[0], plain[2])


@both_architectures
def test_text_behind_a_gap_of_padding_is_read(tiny):
    model, tokenizer = tiny.model, tiny.tokenizer
    gap = tiny.ids.clone()
    gap[:, 2] = tokenizer.pad
    last = int((gap[0] != tokenizer.pad).nonzero()[-1])
    changed = gap.clone()
    changed[0, last] = tokenizer.mask
    with torch.no_grad():
        features, masked = torch.zeros(1, 16, 10), torch.ones(1, 16, dtype=torch.bool)
        cells = torch.arange(16).expand(1, 16)
        logits = [
            PaintText(model, tokenizer, ids[:1]).logits(features, masked, cells) for ids in (gap, changed)
        ]
        _, visual = model(gap[:1], gap[:1] != tokenizer.pad, features, masked)
    assert not torch.allclose(*logits)
    torch.testing.assert_close(logits[0], model.code_head(visual), rtol=1e-4, atol=1e-5)


@both_architectures
def test_noisy_paintings_belong_to_their_seed(tiny):
    def paint(rows, seeds):
        return paint_codes(
            tiny.model, tiny.tokenizer, tiny.codebook, tiny.ids[rows], 4, 2.0, 1.2, 0.5, seeds=seeds
        ).codes

    together = paint([0, 1, 2], [11, 12, 13])
    assert paint([2, 0], [13, 11]).equal(together[[2, 0]])
    assert not paint([0, 1, 2], [21, 22, 23]).equal(together)
