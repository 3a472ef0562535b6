"""Words of other scripts without Java, and CIDEr-D of few captions and of many words."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from diptych.eval.captions.cider import CiderD, CiderDReward
from diptych.eval.captions.metrics import OWN_TOKENS, measure_captions
from diptych.eval.captions.tokens import tokenize
from diptych.eval.figures import Figure, table


def measured(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, Figure]:
    figures = measure_captions(predictions, references, java="never", resamples=10)
    return {figure.name: figure for figure in figures}


@pytest.mark.parametrize(
    "caption,words",
    [
        ("एक कुत्ता और एक कुत्ती।", ["एक", "कुत्ता", "और", "एक", "कुत्ती"]),
        ("கல் காலில்", ["கல்", "காலில்"]),
        ("หมา แมว ปลา", ["หมา", "แมว", "ปลา"]),
        ("שָׁלוֹם, עולם!", ["שָׁלוֹם", "עולם"]),
        ("كَلْبٌ أحمر", ["كَلْبٌ", "أحمر"]),
        ("می\u200cخواهم برود", ["می\u200cخواهم", "برود"]),
        ("क्\u200dष x\u200d \u200dy", ["क्\u200dष", "x", "y"]),
        ("ein Fuß\u00adball \u200fund\u200e\ufeff", ["ein", "fußball", "und"]),
        ("❤\ufe0f a cat \u0301a", ["a", "cat", "a"]),
        ("L’été d’Éric isn’t over", ["l'été", "d'éric", "is", "n't", "over"]),
        ("Красный змей летит.", ["красный", "змей", "летит"]),
        ("빨간 연이 난다", ["빨간", "연이", "난다"]),
        ("\u212bngstr\u00f6m", ["\u00e5ngstr\u00f6m"]),
    ],
)
def test_words_keep_their_marks_however_they_are_composed(caption: str, words: list[str]) -> None:
    expected = [unicodedata.normalize("NFC", word) for word in words]
    for form in ("NFC", "NFD"):
        assert tokenize(unicodedata.normalize(form, caption)) == expected


def test_words_that_differ_in_a_vowel_sign_are_no_match() -> None:
    """Without its vowel signs "की" (of) was "का" too, and so was "कि"."""
    figures = measured({"a": "कुत्ता", "b": "किताब"}, {"a": ["कुत्ती"], "b": ["कातिब"]})
    assert figures["bleu_1"].value == pytest.approx(0, abs=1e-12)
    assert figures["rouge_l"].value == figures["cider_d"].value == 0
    composed = measured({"a": "un café", "b": "né"}, {"a": ["un cafe\u0301"], "b": ["ne\u0301"]})
    assert composed["rouge_l"].value == pytest.approx(1)
    assert composed["bleu_1"].value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "predictions,references",
    [
        ({"a": "a red kite flies"}, {"a": ["a red kite flies"]}),
        ({"a": "a red kite flies"}, {"a": ["a red kite flies", "a kite"]}),
        ({"a": "a red kite", "b": "a red kite"}, {"a": ["a red kite"], "b": ["a red kite"]}),
        ({"a": "", "b": "a kite"}, {"a": [""], "b": ["."]}),
    ],
)
def test_cider_d_of_captions_that_nothing_tells_apart_has_no_value(
    predictions: dict[str, str], references: dict[str, list[str]]
) -> None:
    each: dict[str, dict[str, float]] = {}
    figures = measure_captions(predictions, references, java="never", resamples=10, each=each)
    figure = next(figure for figure in figures if figure.name == "cider_d")
    assert figure.value is figure.low is figure.high is None
    assert "measure two pictures or more that differ" in str(figure.reason) and figure.n == len(predictions)
    assert figure.model == OWN_TOKENS
    assert "not run: cider_d: words count by how few pictures" in table(figures)
    assert list(each["cider_d"]) == list(predictions) and np.isnan(list(each["cider_d"].values())).all()


def test_cider_d_of_two_captions_is_a_number() -> None:
    same = {"a": "a red kite flies", "b": "two blue boats rest"}
    figures = measured(same, {key: [text] for key, text in same.items()})
    assert figures["cider_d"].value == pytest.approx(10)
    # one wrong caption of two is a 0 that means something
    wrong = measured({"a": "no such thing here"}, {"a": ["a red kite"]} | {"b": ["two boats"]})
    assert wrong["cider_d"].value is None  # b has no caption, so it is no reference either
    assert CiderD([[["a", "red", "kite"]], [["two", "boats"]]]).missing is None


def official(candidates: list[list], references: list[list[list]]) -> np.ndarray:
    from pycocoevalcap.cider.cider import Cider

    truth = {i: [" ".join(map(str, words)) for words in several] for i, several in enumerate(references)}
    said = {i: [" ".join(map(str, words))] for i, words in enumerate(candidates)}
    return Cider().compute_score(truth, said)[1]


def test_cider_d_takes_any_number_of_different_words() -> None:
    """70,000 in the references, so that some have numbers that 16 bits cannot hold."""
    generator = np.random.default_rng(0)
    words = np.arange(70_000).reshape(-1, 10)
    references = [[words[i].tolist(), generator.permutation(words[i]).tolist()] for i in range(len(words))]
    candidates = [several[0][: generator.integers(0, 11)] + [5, 69_999] for several in references]
    expected = official(candidates, references)
    mean, values = CiderD([[list(map(str, text)) for text in several] for several in references]).score(
        [list(map(str, text)) for text in candidates]
    )
    np.testing.assert_allclose(values, expected, atol=1e-9, rtol=0)
    assert 1 < mean < 9
    chosen = [6_999, 0, 3]
    rewards = CiderDReward(references).reward(chosen, [candidates[i] for i in chosen])
    np.testing.assert_allclose(rewards, expected[chosen], rtol=1e-6)


def test_words_that_no_reference_has_may_need_more_bits_than_the_references() -> None:
    generator = np.random.default_rng(1)
    references = [[generator.integers(0, 30, 9).tolist() for _ in range(3)] for _ in range(12)]
    candidates = [generator.integers(0, 30, 9).tolist() for _ in range(12)]
    far = [[word + 70_000 if word > 20 else word for word in text] for text in candidates]
    metric = CiderDReward(references)
    np.testing.assert_allclose(metric.reward(range(12), far), official(far, references), rtol=1e-6, atol=1e-6)
    expected = official(candidates, references)
    np.testing.assert_allclose(metric.reward(range(12), candidates), expected, rtol=1e-6, atol=1e-6)
    # and references with many words, captions with few
    moved = [
        [[word + 70_000 if word > 28 else word for word in text] for text in several]
        for several in references
    ]
    few = [[word for word in text if word <= 28] for text in candidates]
    np.testing.assert_allclose(
        CiderDReward(moved).reward(range(12), few), official(few, moved), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("offset", [0, 65_530, 2**32 - 40])
def test_the_numbers_of_words_do_not_change_a_value(offset: int) -> None:
    generator = np.random.default_rng(2)
    references = [[generator.integers(0, 30, 9).tolist() for _ in range(3)] for _ in range(12)]
    candidates = [generator.integers(0, 34, 9).tolist() for _ in range(12)]
    expected = CiderDReward(references).reward(range(12), candidates)
    moved = [[[word + offset for word in text] for text in several] for several in references]
    rewards = CiderDReward(moved).reward(range(12), [[word + offset for word in text] for text in candidates])
    np.testing.assert_array_equal(rewards, expected)
