"""The caption metrics beside the programs that the papers used, where these are easily missed: perfect captions, captions
without a word, words with a no-break space."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.eval.captions import java as java_programs
from diptych.eval.captions import metrics as caption_metrics
from diptych.eval.captions.metrics import measure_captions
from diptych.eval.figures import resampled_means

COCO_MINI = Path(__file__).resolve().parents[3].parent / "shared" / "coco-mini"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not on this machine")
OFFICIAL_WORDS = ["( )", "?!"]  # pycocoevalcap looks for brackets in capitals, and for one sign at a time
WORDLESS = ["", "   ", ".", "! ?", " - ", "\u00a0", "...", *OFFICIAL_WORDS]
PERFECT = "a red kite flies over the calm sea"


@pytest.fixture(scope="module")
def meteor() -> Iterator[java_programs.Meteor]:
    """Ours. The program takes long to start, so it is started once, and in German, where a number has a comma."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
        started = java_programs.Meteor(java_programs.find_java())
    with started:
        yield started


class OfficialMeteor:
    """pycocoevalcap's, and the score of its own counts of any captions, repeated ones too."""

    def __init__(self) -> None:
        from pycocoevalcap.meteor.meteor import Meteor

        self.metric = Meteor()

    def counts(self, candidate: str, references: Sequence[str]) -> str:
        return self.metric._stat(candidate, list(references))

    def score(self, counts: Sequence[str]) -> float:
        process = self.metric.meteor_p
        process.stdin.write(("EVAL ||| " + " ||| ".join(counts) + "\n").encode())
        process.stdin.flush()
        return float([process.stdout.readline() for _ in range(len(counts) + 1)][-1])


@pytest.fixture(scope="module")
def official_meteor() -> OfficialMeteor:
    return OfficialMeteor()


@pytest.fixture
def one_meteor(monkeypatch: pytest.MonkeyPatch, meteor: java_programs.Meteor) -> None:
    monkeypatch.setattr(caption_metrics, "Meteor", lambda java: contextlib.nullcontext(meteor))


def photographs() -> dict[str, list[str]]:
    annotations = COCO_MINI / "annotations" / "captions_val2017.json"
    if not annotations.is_file():
        pytest.skip(f"{annotations} is not here")
    captions: dict[str, list[str]] = {}
    for row in json.loads(annotations.read_text())["annotations"]:
        captions.setdefault(str(row["image_id"]), []).append(row["caption"])
    return captions


def official_words(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """pycocoevalcap's tokenizer, one line a caption. It loses empty captions at the end, so one with a word follows."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = {key: [{"caption": text} for text in several] for key, several in captions.items()}
    lines = PTBTokenizer().tokenize(given | {"the end": [{"caption": "end"}]})
    assert lines.pop("the end") == ["end"]
    return lines


def official_values(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], meteor: OfficialMeteor
) -> dict[str, float]:
    """What COCO's evaluation gives, its own tokenizer first."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = official_words(references)
    said = official_words({key: [text] for key, text in candidates.items()})
    values = {f"bleu_{n}": v for n, v in enumerate(Bleu(4).compute_score(truth, said, verbose=0)[0], 1)}
    values["meteor"] = meteor.metric.compute_score(truth, said)[0]
    values["rouge_l"] = float(Rouge().compute_score(truth, said)[0])
    values["cider_d"] = float(Cider().compute_score(truth, said)[0])
    return values


def measured(*arguments: Any, **settings: Any) -> dict[str, float | None]:
    figures = measure_captions(*arguments, java="needed", spice=False, resamples=20, **settings)
    return {figure.name: figure.value for figure in figures}


@needs_java
def test_meteor_of_any_captions_is_meteor_s_own(
    meteor: java_programs.Meteor, official_meteor: OfficialMeteor
) -> None:
    """Human captions, perfect ones, one in two parts that is all matched, one of one word and an empty one: drawn with
    repetition, as a bootstrap draws them."""
    captions = [[text.lower().rstrip(" .") for text in several] for several in photographs().values()][:40]
    pairs = [(several[0], several[1:]) for several in captions[:25]]
    pairs += [(several[0], several) for several in captions[25:]]
    pairs += [
        (PERFECT, [PERFECT]),
        ("over the calm sea a red kite flies", [PERFECT]),
        ("a kite a kite", ["kite a kite a"]),
        ("kite", ["a kite"]),
        ("kites", ["kite"]),
        ("", [PERFECT, "a kite"]),
    ]
    rows = np.stack([meteor.statistics(*pair) for pair in pairs])
    counts = [official_meteor.counts(*pair) for pair in pairs]
    generator = np.random.default_rng(0)
    sets = [
        np.arange(len(pairs)),
        np.arange(25, 41),
        np.array([40]),
        np.array([40, 40]),
        np.array([42, 42, 40]),
    ]
    sets += [generator.integers(0, len(pairs), generator.integers(1, 60)) for _ in range(25)]
    for chosen in sets:
        expected = official_meteor.score([counts[number] for number in chosen])
        assert meteor.score(rows[chosen].sum(0)) == expected
    for number, single in enumerate(counts):
        assert meteor.score(rows[number]) == official_meteor.score([single])
    means = resampled_means(rows, 3, 20)
    drawn = np.random.default_rng((3, len(rows))).integers(0, len(rows), (20, len(rows)))
    for mean, chosen in zip(means, drawn, strict=True):
        expected = official_meteor.score([counts[number] for number in chosen])
        assert meteor.score(np.round(mean * len(rows), 6)) == expected
    assert meteor.score(rows[[40, 40]].sum(0)) == 1.0  # was 0.5733 with these two pictures


@needs_java
@pytest.mark.usefixtures("one_meteor")
def test_perfect_captions_have_meteor_1_and_no_spread() -> None:
    same = {"a": PERFECT, "b": "two blue boats rest at the bottom"}
    figures = {
        figure.name: figure
        for figure in measure_captions(
            same, {key: [text] for key, text in same.items()}, java="needed", spice=False
        )
    }
    assert (figures["meteor"].value, figures["meteor"].low, figures["meteor"].high) == (1.0, 1.0, 1.0)


@needs_java
@pytest.mark.usefixtures("one_meteor")
@pytest.mark.parametrize("references", [1, 5])
def test_captions_without_a_word_measure_as_in_coco_s_evaluation(
    references: int, official_meteor: OfficialMeteor
) -> None:
    captions = photographs()
    candidates = {key: several[-1] for key, several in captions.items()}
    candidates |= dict(zip(captions, WORDLESS, strict=False))
    compared = {key: several[:references] for key, several in captions.items()}
    expected = official_values(candidates, compared, official_meteor)
    values = measured(candidates, compared)
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    # perfect where there are five references, so that what wordless captions cost is seen in every figure
    whole = measured({key: several[-1] for key, several in captions.items()}, compared)
    for name in expected:
        assert values[name] < whole[name]


@needs_java
@pytest.mark.usefixtures("one_meteor")
@pytest.mark.parametrize("references", [1, 5])
def test_nothing_but_captions_without_a_word_is_0(references: int) -> None:
    truth = [PERFECT, "a kite", "a red kite", "the sea", "a kite over the sea"][:references]
    wordless = [text for text in WORDLESS if text not in OFFICIAL_WORDS]
    candidates = dict(zip("abcdefg", wordless, strict=True))
    values = measured(candidates, {key: [*truth, f"number {key}"][-references:] for key in candidates})
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider_d", "length_mean"):
        assert values[name] == 0


@needs_java
@pytest.mark.usefixtures("one_meteor")
def test_references_without_a_word_are_compared_as_in_coco_s_evaluation(
    official_meteor: OfficialMeteor,
) -> None:
    candidates = {"a": PERFECT, "b": "", "c": "a kite", "d": "two boats"}
    references = {"a": ["", PERFECT], "b": ["a cat", "..."], "c": ["."], "d": ["two blue boats"]}
    expected = official_values(candidates, references, official_meteor)
    values = measured(candidates, references)
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_without_java_captions_without_a_word_are_0() -> None:
    candidates = {"a": "", "b": " ", "c": "?!"}
    references = {"a": [PERFECT], "b": ["two boats rest", "boats"], "c": ["a dog", ""]}
    figures = {
        figure.name: figure for figure in measure_captions(candidates, references, java="never", resamples=5)
    }
    for name in ("bleu_1", "bleu_4", "cider_d", "length_mean"):
        assert figures[name].value == 0
    # pycocoevalcap's ROUGE-L takes nothing for one empty word: an empty caption is the empty reference of picture c
    assert figures["rouge_l"].value == pytest.approx(1 / 3)


@needs_java
def test_ptb_words_are_cut_at_plain_spaces() -> None:
    captions = [
        "A 22 3/4 inch pipe and 1\u00a01/2 apples",
        "22  3/4 with two spaces",
        "call (412) 555-1234 now",
        "a\u00a0cat on\u2009a\u3000mat\u202f.",
        "tab\tand a soft\u00adhyphen, zero\u200bwidth",
        "next line \x85 a file \x1c b",
        "  spaces around  ",
        "",
        "\u00a0",
        "a ||| b|||c",
    ]
    words = java_programs.ptb_tokenize(java_programs.find_java(), captions)
    theirs = official_words({str(number): [text] for number, text in enumerate(captions)})
    assert [" ".join(several) for several in words] == [several[0] for several in theirs.values()]
    assert "22\u00a03/4" in words[0] and words[7] == words[8] == []
    # what ends a line for the tokenizer, and shifts all captions after it in pycocoevalcap, is a space
    broken = java_programs.ptb_tokenize(
        java_programs.find_java(),
        [f"a{sign}cat" for sign in ("\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029")],
    )
    assert broken == [["a", "cat"]] * 7


@needs_java
@pytest.mark.usefixtures("one_meteor")
def test_words_with_a_no_break_space_measure_as_in_coco_s_evaluation(official_meteor: OfficialMeteor) -> None:
    """ROUGE-L takes "22 3/4" for one word, BLEU and CIDEr-D for two."""
    candidates = {"a": "a 22 3/4 inch pipe", "b": "a 3/4 inch pipe of 22", "c": "two boats"}
    references = {
        "a": ["a pipe of 22 3/4 inch"],
        "b": ["a 22 3/4 inch pipe"],
        "c": ["two blue boats", "1 1/2"],
    }
    expected = official_values(candidates, references, official_meteor)
    values = measured(candidates, references)
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@needs_java
def test_meteor_speaks_english_wherever_it_runs(meteor: java_programs.Meteor) -> None:
    """In German a number has a comma, and METEOR could not read what it had written."""
    assert meteor.score(meteor.statistics(PERFECT, [PERFECT])) == 1.0


def test_what_meteor_answers_besides_counts_is_a_reason(tmp_path: Path) -> None:
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nread line\necho 'Error: no references'\nread line\necho '1.0 2.0'\n")
    program.chmod(0o755)
    with java_programs.Meteor(str(program)) as other:
        with pytest.raises(java_programs.NotRun, match="METEOR answered: Error: no references"):
            other.statistics("a kite", ["a kite"])
        with pytest.raises(java_programs.NotRun, match="2 counts for a caption"):
            other.statistics("a kite", ["a kite"])


def fake_spice(folder: Path, score: str) -> str:
    """A program in Java's place that keeps SPICE's input and gives every caption this score."""
    program = folder / "java"
    program.write_text(
        "#!/usr/bin/env python3\n"
        "import json, sys\n"
        "arguments = sys.argv[1:]\n"
        "path = arguments[arguments.index('edu.anu.spice.SpiceScorer') + 1]\n"
        f"open({str(folder / 'input.json')!r}, 'w').write(open(path).read())\n"
        'rows = \', \'.join(\'{"image_id": "%s", "scores": {"All": {"f": %s}}}\''
        f" % (row['image_id'], {score!r}) for row in json.load(open(path)))\n"
        "open(arguments[arguments.index('-out') + 1], 'w').write('[' + rows + ']')\n"
    )
    program.chmod(0o755)
    return str(program)


def test_spice_is_given_captions_with_words_alone_and_the_others_are_0(tmp_path: Path) -> None:
    candidates = {"a": "a kite", "b": "", "c": "a boat", "d": "two boats"}
    references = {"a": ["", "a red kite"], "b": ["a boat"], "c": [""], "d": ["boats", "a sea"]}
    scores = java_programs.spice_scores(fake_spice(tmp_path, "0.5"), [], candidates, references)
    assert scores == {"a": 0.5, "b": 0.0, "c": 0.0, "d": 0.5}
    assert json.loads((tmp_path / "input.json").read_text()) == [
        {"image_id": "a", "test": "a kite", "refs": ["a red kite"]},
        {"image_id": "d", "test": "two boats", "refs": ["boats", "a sea"]},
    ]
    # nothing to parse starts nothing
    assert java_programs.spice_scores("/no/java", [], {"b": ""}, references) == {"b": 0.0}


def test_what_spice_leaves_out_is_no_number(tmp_path: Path) -> None:
    java = fake_spice(tmp_path, "null")
    assert np.isnan(java_programs.spice_scores(java, [], {"a": "a kite"}, {"a": ["a kite"]})["a"])
    java = fake_spice(tmp_path, '"none"')
    with pytest.raises(java_programs.NotRun, match="SPICE ended without a result"):
        java_programs.spice_scores(java, [], {"a": "a kite"}, {"a": ["a kite"]})
    Path(java).write_text(Path(java).read_text().replace("json.load(open(path))", "[]"))
    with pytest.raises(java_programs.NotRun, match="no score for 1 pictures"):
        java_programs.spice_scores(java, [], {"a": "a kite"}, {"a": ["a kite"]})
