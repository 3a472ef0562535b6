"""Captions and paintings as options say; options that make no sense; reranking."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from diptych.model.decoding.caption import (
    Captions,
    PrefixNextWord,
    decode_captions,
    word_log_probabilities,
)
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.noise import sample_seeds, uniform_noise
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import paint_codes
from diptych.model.decoding.rerank import rerank
from diptych.model.decoding.words import WordFilters, start_words
from diptych.model.errors import UserError

CAPTIONS = {
    "greedy": CaptionOptions(length=10),
    "greedy from a start": CaptionOptions(length=10, start="A", no_repeat=2),
    "sampled": CaptionOptions(length=10, method="sample", temperature=1.2, samples=3),
    "top-k": CaptionOptions(length=10, method="sample", top_k=4, no_repeat=1, start="The"),
    "top-p": CaptionOptions(length=10, method="sample", top_p=0.6, samples=2),
    "beams": CaptionOptions(length=10, method="beam", beams=3, length_power=0.7, no_repeat=2),
    "groups": CaptionOptions(
        length=10, method="beam", beams=4, groups=2, diversity=0.7, samples=4, start="A red"
    ),
}


@pytest.fixture
def double(tiny):
    """In float64, with larger weights, so that captions differ; five images; full stops at many places."""
    tiny.model.double()
    tiny.codebook = tiny.codebook.double()
    tiny.features = (
        torch.randn(5, 16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3 + 1
    )
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            if parameter.ndim == 2:
                parameter *= 2
        tiny.model.word_bias[tiny.tokenizer.stop] += 1.5
    return tiny


@pytest.mark.parametrize("scheme", ["prefix", "masked"])
def test_defaults_are_greedy_captions_and_mask_predict(double, scheme):
    model, tokenizer = double.model, double.tokenizer
    model.config = replace(model.config, caption_attention=scheme)
    options = CaptionOptions(length=10)
    prefix = scheme == "prefix"
    images = model.encode_visual_prefix(double.features) if prefix else [model.encode_visual(double.features)]
    plain = decode_captions(model, tokenizer, images, 10)
    result = caption_images(model, tokenizer, double.features, options)
    assert result.ids.equal(plain.ids) and result.log_probabilities.equal(plain.log_probabilities)
    painted = paint_captions(model, tokenizer, double.codebook, double.ids, PaintOptions(guidance=2.0))
    assert painted.codes.equal(paint_codes(model, tokenizer, double.codebook, double.ids, 4, 2.0).codes)
    noisy = PaintOptions(steps=3, temperature=1.0, confidence_noise=0.3)
    painted = paint_captions(model, tokenizer, double.codebook, double.ids, noisy, [1, 2, 3])
    plain = paint_codes(model, tokenizer, double.codebook, double.ids, 3, 1.0, 1.0, 0.3, [1, 2, 3])
    assert painted.codes.equal(plain.codes)


@pytest.mark.parametrize("scheme", ["prefix", "masked"])
@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_do_not_depend_on_their_batch(double, name, scheme):
    options = CAPTIONS[name]
    double.model.config = replace(double.model.config, caption_attention=scheme)

    def write(rows):
        seeds = [50 + row for row in rows]
        result = caption_images(double.model, double.tokenizer, double.features[rows], options, seeds)
        return (
            result.ids.view(len(rows), options.samples, 10),
            result.log_probabilities.view(len(rows), options.samples, 10),
        )

    together = write([0, 1, 2, 3, 4])
    for rows in ([0], [3, 1], [4, 2, 0]):
        ids, log_probabilities = write(rows)
        assert ids.equal(together[0][rows])
        torch.testing.assert_close(log_probabilities, together[1][rows], rtol=1e-5, atol=1e-5)
    if options.start:
        start = torch.tensor(start_words(double.tokenizer, options.start, 10))
        assert (together[0][..., 1 : 1 + len(start)] == start).all()
        assert (together[1][..., 1 : 1 + len(start)] == 0).all()


@pytest.mark.parametrize("scheme", ["prefix", "masked"])
@pytest.mark.parametrize("name", ["greedy from a start", "top-k", "top-p"])
def test_filtered_captions_equal_a_plain_rewrite(double, name, scheme):
    """Every word from full forward passes; sampling by inverting the distribution that the filters leave."""
    model, tokenizer, options = double.model, double.tokenizer, CAPTIONS[name]
    model.config = replace(model.config, caption_attention=scheme)
    seeds = sample_seeds([7, 8, 9, 10, 11], options.samples)
    result = caption_images(model, tokenizer, double.features, options, [7, 8, 9, 10, 11])
    filters = WordFilters(options.no_repeat, options.top_k, options.top_p)
    ends, written = set(), set()
    for row, seed in enumerate(seeds):
        features = double.features[row // options.samples : row // options.samples + 1]
        noise = uniform_noise([seed], 10, device=torch.device("cpu"))[0]
        ids = [tokenizer.cls, *start_words(tokenizer, options.start, 10)]
        begun = len(ids)
        chances = []
        while len(ids) < 9 and ids[-1] != tokenizer.stop:
            with torch.no_grad():
                if scheme == "prefix":
                    logits = model.caption_logits(torch.tensor([ids]), model.encode_visual_prefix(features))[
                        :, -1
                    ]
                else:
                    logits = model.masked_caption_logits(
                        torch.tensor([[*ids, tokenizer.mask]]),
                        None,
                        model.encode_visual(features),
                        torch.tensor([len(ids)]),
                    )
            choices = word_log_probabilities(logits, tokenizer, options.temperature)
            choices = filters(torch.tensor([ids]), choices)[0]
            if options.method == "sample":
                choices = choices.double().log_softmax(-1)
                shares = choices.exp().cumsum(-1)
                word = int((shares <= noise[len(ids)] * shares[-1]).sum())
            else:
                word = int(choices.argmax())
            chances.append(choices[word].item())
            ids.append(word)
        assert tokenizer.words(result.ids[row]) == ids[1:]
        assert result.log_probabilities[row, begun : len(ids)].tolist() == pytest.approx(chances, abs=1e-4)
        ends.add(len(ids))
        written.add(tuple(ids))
    assert len(ends) > 1 and len(written) > 2


def test_blocked_repeats(tiny):
    """A model that likes to repeat itself does so, unless it is kept from it."""
    tokenizer = tiny.tokenizer
    with torch.no_grad():
        tiny.model.word_bias[[40, 41]] += 4
        tiny.model.word_bias[tokenizer.stop] -= 4
    for method in ("greedy", "beam", "sample"):
        for no_repeat in (0, 2):
            options = CaptionOptions(length=14, method=method, no_repeat=no_repeat)
            written = caption_images(tiny.model, tokenizer, tiny.features, options, [1, 2, 3])
            repeats = 0
            for ids in written.ids:
                words = tokenizer.words(ids)
                pairs = list(itertools.pairwise(words))
                repeats += len(pairs) - len(set(pairs))
            assert (repeats == 0) == (no_repeat == 2)


def test_samples_share_the_visual_pass(double, monkeypatch):
    passes, groups = [], []
    encode = double.model.encode_visual_prefix
    logits = PrefixNextWord.logits
    monkeypatch.setattr(
        double.model,
        "encode_visual_prefix",
        lambda features: passes.append(len(features)) or encode(features),
    )
    monkeypatch.setattr(
        PrefixNextWord,
        "logits",
        lambda self, ids: (
            groups.append((self.captions_per_image, len(self.keys_values[0][0]))) or logits(self, ids)
        ),
    )
    options = replace(CAPTIONS["sampled"], samples=4)
    samples = caption_images(double.model, double.tokenizer, double.features, options, [1, 2, 3, 4, 5])
    assert passes == [5] and groups[0] == (4, 5)
    seeds = sample_seeds([1, 2, 3, 4, 5], 4)
    for sample in range(4):
        alone = caption_images(
            double.model, double.tokenizer, double.features, replace(options, samples=1), seeds[sample::4]
        )
        assert samples.ids[sample::4].equal(alone.ids)


def test_rerank_takes_the_best_sample_of_each_item(double):
    options = replace(CAPTIONS["sampled"], samples=6)
    samples = caption_images(double.model, double.tokenizer, double.features, options, range(5))
    result = rerank(samples, 6, lambda captions: captions.log_probabilities.sum(1))
    totals = samples.log_probabilities.sum(1).view(5, 6)
    assert result.scores.equal(totals)
    for item in range(5):
        best = max(range(6), key=lambda sample, item=item: totals[item, sample].item())
        assert result.chosen[item] == best
        assert result.best.ids[item].equal(samples.ids[6 * item + best])
        assert result.best.log_probabilities[item].equal(samples.log_probabilities[6 * item + best])
    assert len(set(result.chosen.tolist())) > 1
    assert rerank(samples, 6, lambda captions: torch.ones(30)).chosen.tolist() == [0] * 5

    options = PaintOptions(temperature=1.0, samples=2)
    painted = paint_captions(
        double.model, double.tokenizer, double.codebook, double.ids, options, [1, 2, 3], keep_steps=True
    )
    result = rerank(painted, 2, lambda paintings: -(paintings.codes == 0).sum(1).float())
    for item in range(3):
        assert result.best.codes[item].equal(painted.codes[2 * item + int(result.chosen[item])])
        assert result.best.steps[item, -1].equal(result.best.codes[item])


def test_scores_that_are_none():
    captions = Captions(torch.zeros(6, 4, dtype=torch.int64), torch.zeros(6, 4))
    with pytest.raises(UserError, match=r"the scorer has to give 6 scores, one per sample, gave \[3\]"):
        rerank(captions, 2, lambda samples: torch.zeros(3))
    with pytest.raises(UserError, match="the scorer gave no number for sample 4"):
        rerank(captions, 2, lambda samples: torch.tensor([0, 0, 0, 0, torch.nan, 0]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 2}, "length must be at least 3, is 2"),
        ({"method": "beams"}, "method must be one of greedy, sample, beam, is 'beams'"),
        ({"method": "sample", "top_k": 0}, "top_k must be at least 1, is 0"),
        ({"method": "sample", "top_p": 0.0}, "top_p must be above 0, is 0.0"),
        ({"method": "sample", "top_p": 1.2}, r"top_p must be in \(0, 1\], is 1.2"),
        ({"method": "sample", "top_p": float("nan")}, "top_p must be a finite number, is nan"),
        ({"method": "sample", "temperature": 0.0}, "temperature must be above 0, is 0.0"),
        (
            {"temperature": 0.7},
            "temperature belongs to method sample, method is greedy; leave temperature out",
        ),
        ({"top_k": 5}, "top_k belongs to method sample"),
        ({"method": "sample", "beams": 3}, "beams belongs to method beam, method is sample"),
        ({"method": "beam", "beams": 0}, "beams must be at least 1, is 0"),
        (
            {"method": "beam", "beams": 4, "groups": 3, "diversity": 1.0},
            r"groups \(3\) must divide beams \(4\)",
        ),
        (
            {"method": "beam", "beams": 2, "groups": 4, "diversity": 1.0},
            r"groups \(4\) must divide beams \(2\)",
        ),
        ({"method": "beam", "beams": 4, "groups": 2}, "groups above 1 and diversity above 0 go together"),
        ({"method": "beam", "diversity": 0.5}, "groups above 1 and diversity above 0 go together"),
        ({"method": "beam", "diversity": -1.0}, "diversity must be at least 0"),
        ({"method": "beam", "length_power": -0.1}, "length_power must be at least 0, is -0.1"),
        ({"method": "beam", "length_power": 300.0}, "length_power must be at most 100.0, is 300.0"),
        ({"method": "sample", "temperature": 1e-38}, "temperature must be at least 1e-06, is 1e-38"),
        ({"method": "beam", "samples": 6}, r"samples \(6\) must be at most beams \(5\)"),
        ({"samples": 2}, "samples belongs to method sample or beam, method is greedy"),
        ({"no_repeat": -1}, "no_repeat must be at least 0"),
        ({"length": 12.0}, "length must be a whole number, is 12.0"),
        ({"length": "12"}, "length must be a whole number, is '12'"),
        ({"no_repeat": True}, "no_repeat must be a whole number, is True"),
        ({"method": "sample", "temperature": float("inf")}, "temperature must be a finite number, is inf"),
        ({"method": "sample", "temperature": "hot"}, "temperature must be a finite number, is 'hot'"),
        ({"start": None}, "start must be a string, is None"),
    ],
)
def test_caption_options_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        CaptionOptions(**{"length": 12, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "spiral"},
            "method must be one of mask_predict, rows, random, easiest, gibbs, is 'spiral'",
        ),
        ({"schedule": "square"}, "schedule must be one of linear, cosine"),
        ({"steps": 0}, "steps must be at least 1, is 0"),
        (
            {"method": "rows", "steps": 8},
            "steps belongs to method mask_predict, method is rows; leave steps out",
        ),
        ({"method": "random", "extra_steps": -1}, "extra_steps must be at least 0"),
        ({"extra_steps": 4}, "extra_steps belongs to method random"),
        ({"method": "gibbs"}, "method gibbs samples: temperature must be above 0"),
        ({"method": "gibbs", "temperature": 1.0, "sweeps": 0}, "sweeps must be at least 1"),
        ({"method": "gibbs", "temperature": 1.0, "cells_at_once": 0}, "cells_at_once must be at least 1"),
        (
            {"method": "random", "confidence_noise": 1.0},
            "confidence_noise belongs to method mask_predict or easiest",
        ),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": 1e-38}, "temperature must be at least 1e-06, is 1e-38"),
        ({"confidence_noise": float("nan")}, "confidence_noise must be a finite number, is nan"),
        ({"guidance": float("nan")}, "guidance must be a finite number, is nan"),
        ({"steps": 2.5}, "steps must be a whole number, is 2.5"),
        ({"samples": 3}, "samples is 3, but method mask_predict paints the same every time"),
    ],
)
def test_paint_options_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        PaintOptions(**values)


def test_what_does_not_fit_the_model_is_one_message(double):
    model, tokenizer, codebook, ids = double.model, double.tokenizer, double.codebook, double.ids
    options = PaintOptions()
    others = codebook[:-1], torch.cat([codebook, codebook]), codebook[:, :-1]
    for method, other in itertools.product(("mask_predict", "rows", "easiest"), others):
        with pytest.raises(UserError, match=r"a codebook of K, D = .* was built for \(12, 10\)"):
            paint_captions(model, tokenizer, other, ids, PaintOptions(method=method))
    with pytest.raises(UserError, match="a codebook of K, D"):
        paint_codes(model, tokenizer, codebook[:-1], ids)
    empty = ids.clone()
    empty[1] = tokenizer.pad
    with pytest.raises(UserError, match="caption 1 of 3 has no token"):
        paint_captions(model, tokenizer, codebook, empty, options)
    with pytest.raises(UserError, match="no caption to paint"):
        paint_captions(model, tokenizer, codebook, ids[:0], options)

    features = double.features
    caption_options = CaptionOptions(length=10)
    with pytest.raises(UserError, match="no image to caption"):
        caption_images(model, tokenizer, features[:0], caption_options)
    with pytest.raises(UserError, match=r"\[n, 16, 10\] for this transformer, these are \[5, 15, 10\]"):
        caption_images(model, tokenizer, features[:, 1:], caption_options)
    broken = features.clone()
    broken[2, 3, 4] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite in row 2"):
        caption_images(model, tokenizer, broken, caption_options)
    with pytest.raises(UserError, match="21 tokens, but this transformer has 20 text positions"):
        caption_images(model, tokenizer, features, CaptionOptions(length=40))


def test_random_paintings_need_seeds(double):
    for options in (PaintOptions(temperature=1.0), PaintOptions(method="random")):
        with pytest.raises(ValueError, match="one seed per caption"):
            paint_captions(double.model, double.tokenizer, double.codebook, double.ids, options, [1])
    with pytest.raises(ValueError, match="one seed per caption"):
        caption_images(
            double.model, double.tokenizer, double.features, CaptionOptions(length=9, method="sample")
        )
