from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diptych.eval.captions import (
    CiderD,
    CiderDReward,
    caption_metrics,
    caption_statistics,
    names_object,
    tokenize,
)
from diptych.eval.errors import UserError

COCO_MINI = Path(__file__).resolve().parents[3].parent / "shared" / "coco-mini"


def pycocoevalcap_cider(candidates: list[list], references: list[list[list]]) -> np.ndarray:
    from pycocoevalcap.cider.cider import Cider

    truth = {i: [" ".join(map(str, words)) for words in several] for i, several in enumerate(references)}
    _, values = Cider().compute_score(
        truth, {i: [" ".join(map(str, words))] for i, words in enumerate(candidates)}
    )
    return values


def random_captions(generator: np.random.Generator, count: int, words: int) -> list[list[int]]:
    return [generator.integers(0, words, generator.integers(1, 14)).tolist() for _ in range(count)]


@pytest.mark.parametrize("seed,words", [(0, 4), (1, 12), (2, 200)])
def test_cider_d_equals_pycocoevalcap_on_random_captions(seed: int, words: int) -> None:
    generator = np.random.default_rng(seed)
    references = [random_captions(generator, int(generator.integers(1, 7)), words) for _ in range(40)]
    candidates = random_captions(generator, 40, words + 3)  # with words that no reference has
    expected = pycocoevalcap_cider(candidates, references)
    mean, values = CiderD([[[str(w) for w in c] for c in several] for several in references]).score(
        [[str(w) for w in c] for c in candidates]
    )
    np.testing.assert_allclose(values, expected, atol=1e-9, rtol=0)
    assert mean == pytest.approx(expected.mean(), abs=1e-9)
    rewards = CiderDReward(references).reward(range(40), candidates)
    assert rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, expected, rtol=1e-6, atol=1e-6)


def test_cider_d_with_frequencies_of_the_batch_equals_pycocoevalcap_on_the_batch() -> None:
    """Sampled and greedy captions of the same pictures in one call: every picture is listed twice."""
    generator = np.random.default_rng(4)
    references = [random_captions(generator, 5, 30) for _ in range(20)]
    pictures = [3, 7, 7, 3, 11, 11]
    candidates = random_captions(generator, len(pictures), 33)
    expected = pycocoevalcap_cider(candidates, [references[picture] for picture in pictures])
    rewards = CiderDReward(references, "batch").reward(pictures, candidates)
    np.testing.assert_allclose(rewards, expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(rewards, CiderDReward(references).reward(pictures, candidates))
    with pytest.raises(UserError, match="document_frequencies must be corpus or batch"):
        CiderDReward(references, "epoch")


def test_cider_d_equals_pycocoevalcap_on_photographs() -> None:
    annotations = COCO_MINI / "annotations" / "captions_val2017.json"
    if not annotations.is_file():
        pytest.skip(f"{annotations} is not here")
    captions: dict[int, list[list[str]]] = {}
    for row in json.loads(annotations.read_text())["annotations"]:
        captions.setdefault(row["image_id"], []).append(tokenize(row["caption"]))
    candidates, references = zip(*((first, others) for first, *others in captions.values()), strict=True)
    _, values = CiderD(references).score(candidates)
    np.testing.assert_allclose(values, pycocoevalcap_cider(candidates, references), atol=1e-9, rtol=0)
    assert values.mean() > 0.5


def test_cider_d_against_other_references_uses_the_corpus_frequencies() -> None:
    corpus = [[["a", "red", "kite"]], [["a", "blue", "boat"]], [["a", "red", "boat"]]]
    metric = CiderD(corpus)
    _, own = metric.score([["a", "red", "kite"]] * 3)
    _, other = metric.score([["a", "red", "kite"]], references=corpus[:1])
    assert other[0] == pytest.approx(own[0])
    _, new = metric.score([["a", "green", "fish"]], references=[[["a", "green", "fish"]]])
    assert new[0] == pytest.approx(7.5)  # no four-gram in three words


def test_reward_is_per_image_and_prefers_the_own_caption() -> None:
    reward = CiderDReward([[[1, 2, 3, 4], [1, 2, 5]], [[6, 7, 8, 9]], [[6, 2, 3]]])
    own, foreign, empty = reward.reward([1, 0, 1], [[6, 7, 8, 9], [6, 7, 8, 9], []])
    assert own == pytest.approx(10.0) and foreign < 0.1 and empty == 0


@pytest.mark.parametrize("references", [[], [[[1]], []], [[[70000]]], [[[-1]]]])
def test_bad_references_are_named(references: list) -> None:
    with pytest.raises(UserError, match="CIDEr-D"):
        CiderDReward(references)


@pytest.mark.parametrize(
    "caption,words",
    [
        ("A man's T-shirt isn't red.", ["a", "man", "'s", "t-shirt", "is", "n't", "red"]),
        ('Two "big" dogs -- and (maybe) a cat!', ["two", "big", "dogs", "and", "maybe", "a", "cat"]),
        ("they can't; we'll, I\u2019m", ["they", "ca", "n't", "we", "'ll", "i", "'m"]),
        ("It costs $1,000.50 at 3:30 o'clock.", ["it", "costs", "$", "1,000.50", "at", "3:30", "o'clock"]),
        ("a red kite flies .", ["a", "red", "kite", "flies"]),
        ("", []),
    ],
)
def test_tokenize(caption: str, words: list[str]) -> None:
    assert tokenize(caption) == words


def test_caption_metrics(capfd: pytest.CaptureFixture[str]) -> None:
    references = {
        "a": ["a red kite flies over the sea .", "a kite"],
        "b": ["two blue boats rest at the bottom ."],
    }
    metrics = caption_metrics(
        {"a": "a red kite flies over the sea.", "b": "two blue boats rest at the bottom"}, references
    )
    assert set(metrics) == {"cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}
    assert metrics["bleu_4"] == pytest.approx(1.0, abs=1e-6) and metrics["cider_d"] > 5
    worse = caption_metrics(
        {"a": "a red kite flies over the sand", "b": "two red boats rest at the bottom"}, references
    )
    assert all(worse[name] < metrics[name] for name in metrics)
    assert capfd.readouterr().out == ""
    with pytest.raises(UserError, match="'c'"):
        caption_metrics({"c": "a kite"}, references)
    with pytest.raises(UserError):
        caption_metrics({}, references)


def test_java_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    caption_metrics({"a": "a red kite flies high"}, {"a": ["a red kite flies high"]})


@pytest.mark.parametrize(
    "caption,label,attribute,expected",
    [
        ("a red kite flies over a blue boat .", "kite", "red", True),
        ("a red kite flies over a blue boat .", "boat", "red", False),
        ("a red kite flies over a blue boat .", "kite", "blue", False),
        ("Two red kites fly.", "kite", "red", True),
        ("a red little boat waits", "boat", "red", True),
        ("a little red boat waits", "boat", "red", True),
        ("a red ball kite", "kite", "red", False),
        ("three green boxes and two blue fish", "box", "green", True),
        ("three green boxes and two blue fish", "fish", "blue", True),
        ("yellow houses", "house", "yellow", True),
        ("white puppies beside brown men", "puppy", "white", True),
        ("white puppies beside brown men", "man", "brown", True),
        ("the redkite", "kite", "red", False),
        ("a brown teddy bear", "teddy bear", "brown", True),
        ("a brown bear", "teddy bear", "brown", False),
        ("kite red", "kite", "red", False),
        ("a kite and a red kite", "kite", "red", True),
        ("", "kite", "red", False),
    ],
)
def test_names_object(caption: str, label: str, attribute: str, expected: bool) -> None:
    assert names_object(caption, label, attribute) is expected


def test_caption_statistics() -> None:
    statistics = caption_statistics(["a red kite .", "a red kite", "a blue boat rests"])
    assert statistics["length_mean"] == pytest.approx(10 / 3)
    assert statistics["vocabulary"] == 6
    assert statistics["unique"] == pytest.approx(2 / 3)
    assert statistics["distinct_1"] == pytest.approx(6 / 10)
    assert statistics["distinct_2"] == pytest.approx(5 / 7)
    assert caption_statistics([])["vocabulary"] == 0
