from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until

from diptych.eval.captions import java as java_programs
from diptych.eval.captions.cider import CiderD, CiderDReward
from diptych.eval.captions.facts import names_object, said_counts
from diptych.eval.captions.metrics import OWN_TOKENS, PTB_TOKENS, bleu, bleu_statistics, measure_captions
from diptych.eval.captions.statistics import repeated, statistics_figures
from diptych.eval.captions.tokens import tokenize
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure

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


@pytest.mark.parametrize("references", [[], [[[1]], []], [[[2**32 - 1]]], [[[-1]]]])
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


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


REFERENCES = {
    "a": ["a red kite flies over the sea .", "a kite"],
    "b": ["two blue boats rest at the bottom ."],
}


def test_captions_are_measured_without_java(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    same = {"a": "a red kite flies over the sea.", "b": "two blue boats rest at the bottom"}
    metrics = by_name(
        measure_captions(same, REFERENCES, java="never", training=["A red kite flies over the sea."])
    )
    assert metrics["bleu_4"].value == pytest.approx(1.0, abs=1e-6) and metrics["cider_d"].value > 5
    assert metrics["rouge_l"].value == pytest.approx(1.0) and metrics["novel"].value == 0.5
    assert metrics["cider_d"].model == OWN_TOKENS
    for name in ("meteor", "spice"):
        assert metrics[name].value is None and "turned off" in str(metrics[name].reason)
    near = {"a": "a red kite flies over the sand", "b": "two red boats rest at the bottom"}
    worse = by_name(measure_captions(near, REFERENCES, java="never"))
    for name in ("bleu_1", "bleu_4", "cider_d", "rouge_l"):
        assert worse[name].value < metrics[name].value
        assert worse[name].low <= worse[name].value <= worse[name].high
    assert worse["novel"].value is None and "training" in str(worse["novel"].reason)
    assert capfd.readouterr().out == ""
    with pytest.raises(UserError, match="'c'"):
        measure_captions({"c": "a kite"}, REFERENCES, java="never")
    with pytest.raises(UserError, match="no captions"):
        measure_captions({}, REFERENCES, java="never")


def test_without_java_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    metrics = by_name(measure_captions({"a": "a kite"}, REFERENCES))
    assert metrics["cider_d"].model == OWN_TOKENS
    for name in ("meteor", "spice"):
        assert metrics[name].value is None and "default-jre-headless" in str(metrics[name].reason)
    with pytest.raises(UserError, match="default-jre-headless"):
        measure_captions({"a": "a kite"}, REFERENCES, java="needed")
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho no runtime present >&2\nexit 1\n")
    broken.chmod(0o755)
    metrics = by_name(measure_captions({"a": "a kite"}, REFERENCES))
    assert "no runtime present" in str(metrics["meteor"].reason)


@pytest.mark.parametrize("seed", [0, 1])
def test_bleu_equals_pycocoevalcap(seed: int) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    generator = np.random.default_rng(seed)
    lines = [[" ".join(map(str, c)) for c in random_captions(generator, 4, 6)] for _ in range(50)]
    candidates, references = [several[0] for several in lines], [several[1:] for several in lines]
    counts = bleu_statistics(candidates, references)
    expected, _ = Bleu(4).compute_score(
        dict(enumerate(references)), {i: [line] for i, line in enumerate(candidates)}, verbose=0
    )
    np.testing.assert_allclose(bleu(counts.sum(0, keepdims=True))[0], expected, atol=1e-12, rtol=0)
    assert 0.05 < expected[3] < 0.9
    # of means as of sums, but for the tiny numbers that keep divisions from 0
    np.testing.assert_allclose(bleu(counts.mean(0, keepdims=True))[0], expected, atol=1e-8, rtol=0)


HAS_JAVA = shutil.which("java") is not None
needs_java = pytest.mark.skipif(not HAS_JAVA, reason="java is not on this machine")


@needs_java
def test_photographs_measure_what_coco_s_evaluation_gives() -> None:
    """The first human caption of each picture in file order against its others."""
    annotations = COCO_MINI / "annotations" / "captions_val2017.json"
    if not annotations.is_file():
        pytest.skip(f"{annotations} is not here")
    captions: dict[str, list[str]] = {}
    for row in json.loads(annotations.read_text())["annotations"]:
        captions.setdefault(str(row["image_id"]), []).append(row["caption"])
    metrics = by_name(
        measure_captions(
            {key: several[0] for key, several in captions.items()},
            {key: several[1:] for key, several in captions.items()},
            java="needed",
            resamples=50,
        )
    )
    expected = {"bleu_4": 0.2455, "meteor": 0.2712, "rouge_l": 0.5149, "cider_d": 1.1331}
    assert {name: round(metrics[name].value, 4) for name in expected} == expected
    assert all(metrics[name].model == PTB_TOKENS for name in expected)
    assert all(metrics[name].low < metrics[name].value < metrics[name].high for name in expected)


@needs_java
def test_ptb_words_are_those_of_pycocoevalcap() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [
        "A man's T-shirt isn't red.",
        'Two "big" dogs -- and (maybe) a cat!',
        "they can't; we'll...",
        "",
        "It costs $1,000.50 at 3:30 o'clock",
        "A caf\u00e9 by the Stra\u00dfe\x85 at night",
        "two\nlines and a  gap",
    ]
    words = java_programs.ptb_tokenize(java_programs.find_java(), captions)
    plain = [number for number, caption in enumerate(captions) if caption.isascii() and caption.strip()]
    theirs = PTBTokenizer().tokenize({number: [{"caption": captions[number]}] for number in plain})
    assert [" ".join(words[number]) for number in plain] == [theirs[number][0] for number in plain]
    assert words[3] == [] and words[5][:2] == ["a", "caf\u00e9"] and len(words) == len(captions)


def alive(process_id: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@needs_java
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_meteor_ends_after_an_exception_and_when_its_parent_is_killed() -> None:
    with pytest.raises(KeyboardInterrupt), java_programs.Meteor(java_programs.find_java()) as meteor:
        process_id = meteor.process_id
        raise KeyboardInterrupt
    assert not alive(process_id)

    script = """
import sys
from diptych.eval.captions.java import Meteor, find_java
meteor = Meteor(find_java())
print(meteor.process_id, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    process_id = int(parent.stdout.readline())
    assert alive(process_id)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not alive(process_id))


@needs_java
def test_a_meteor_that_dies_is_a_reason_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    started = java_programs.Meteor.__init__

    def killed(self: java_programs.Meteor, java: str) -> None:
        started(self, java)
        os.kill(self.process_id, signal.SIGKILL)

    monkeypatch.setattr(java_programs.Meteor, "__init__", killed)
    metrics = by_name(measure_captions({"a": "a kite", "b": "two boats"}, REFERENCES))
    assert metrics["meteor"].value is None and "METEOR ended by itself" in str(metrics["meteor"].reason)
    assert metrics["cider_d"].model == PTB_TOKENS and metrics["cider_d"].value is not None


@needs_java
def test_spice_without_its_jars_says_where_they_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(java_programs.CORENLP_VARIABLE, str(tmp_path))
    with pytest.raises(java_programs.NotRun, match=f"{tmp_path}.*{java_programs.CORENLP_ARCHIVE}"):
        java_programs.find_corenlp()
    for name in java_programs.CORENLP_JARS:
        (tmp_path / name).write_bytes(b"no jar")
    jars = java_programs.find_corenlp()
    assert [jar.name for jar in jars] == list(java_programs.CORENLP_JARS)
    # SPICE itself starts, and what is missing is its reason
    with pytest.raises(java_programs.NotRun, match="SPICE"):
        java_programs.spice_scores(java_programs.find_java(), jars, {"a": "a kite"}, {"a": ["a kite"]})


def test_spice_is_called_with_open_packages_and_its_scores_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a program in Java's place: CoreNLP's models are not here."""
    fake = tmp_path / "java"
    fake.write_text(
        f"""#!{sys.executable}
import json, sys
arguments = sys.argv[1:]
assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in arguments and "-subset" in arguments
classpath = arguments[arguments.index("-cp") + 1]
assert "spice-1.0.jar" in classpath and "SceneGraphParser-1.0.jar" in classpath and "models.jar" in classpath
items = json.load(open(arguments[arguments.index("edu.anu.spice.SpiceScorer") + 1]))
scores = [{{"image_id": i["image_id"], "scores": {{"All": {{"f": len(i["refs"]) / 10}}}}}} for i in items]
json.dump(scores, open(arguments[arguments.index("-out") + 1], "w"))
"""
    )
    fake.chmod(0o755)
    jars = [tmp_path / name for name in java_programs.CORENLP_JARS]
    scores = java_programs.spice_scores(str(fake), jars, {"a": "a kite", "b": "two boats"}, REFERENCES)
    assert scores == {"a": 0.2, "b": 0.1}


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


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("two red kites float at the top with a white house .", {"kite": 2, "house": 1}),
        ("A red kite flies above two blue kites.", {"kite": 3}),
        ("there is a small blue car at night below another car", {"car": 2}),
        ("a blue car stands at the bottom left left of a yellow fish", {"car": 1, "fish": 1}),
        ("three green fish and kites", {"fish": 3}),
        ("a kite, and more kites", {}),
        ("a kite and, below the kite, the house", {"kite": 1}),
        ("12 dining tables and a table", {"dining table": 12}),
        ("two teddy bears beside one bear", {"teddy bear": 2, "bear": 1}),
        ("a pair of kites over a bear", {"bear": 1}),
        ("a group of bears", {}),
        ("two kites above a bear, the two kites are red", {"kite": 2, "bear": 1}),
        ("a kite at the top and another kite", {"kite": 2}),
        ("the two kites", {"kite": 2}),
        ("nothing at all", {}),
        ("", {}),
    ],
)
def test_said_counts(caption: str, expected: dict[str, int]) -> None:
    labels = ["bear", "car", "dining table", "fish", "house", "kite", "teddy bear"]
    assert said_counts(caption, labels) == expected


def test_caption_statistics() -> None:
    words = [tokenize(text) for text in ("a red kite .", "a red kite", "a blue blue boat rests")]
    figures = by_name(statistics_figures(words, seed=0, training=[["a", "red", "kite"]]))
    expected = {
        "length_mean": 11 / 3,
        "length_deviation": np.std([3, 3, 5]),
        "vocabulary": 6,
        "unique": 2 / 3,
        "div_1": 6 / 11,
        "div_2": 6 / 11,
        "repeated_words": 1 / 11,
        "novel": 1 / 3,
    }
    assert {name: figure.value for name, figure in figures.items()} == pytest.approx(expected)
    assert figures["div_1"].low is None and figures["length_mean"].low is not None


@pytest.mark.parametrize(
    "caption,count",
    [
        ("a red kite", 0),
        ("a red red kite", 1),
        ("a red red red kite", 2),
        ("a dog with a dog with one cat", 3),
        ("a kite and a boat", 0),
        ("", 0),
    ],
)
def test_repeated_words(caption: str, count: int) -> None:
    assert repeated(caption.split()) == count
