"""VQA v2's accuracy: its normalisation with its oddities, the soft score, figures. Values are derived by hand from the
official script's rules, and were the script's own when this was written."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from diptych.eval.answers.normalisation import normalise_answer
from diptych.eval.answers.questions import Question, Settings
from diptych.eval.answers.soft_scores import answer_scores, soft_score
from diptych.eval.answers.vqa import measure_vqa
from diptych.eval.errors import UserError


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        (" The  Red\nkite\t", "red kite"),
        ("a", ""),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        # a sign becomes a blank, or goes where a blank stands beside that sign anywhere in the answer
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("what?", "what"),
        # a number with a comma takes all signs away
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        # periods go unless a digit follows; one behind a digit goes, which the script does not mean to do
        ("st. john", "st john"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("u.s.a.", "usa"),
        ("." * 40, "." * 8),  # 32 at most
        # signs that are no signs for the script
        ("half:half", "half:half"),
        ("dog's", "dog's"),
        ("*", "*"),
        ("dont", "don't"),
        ("Im", "im"),  # its keys with capitals are never found
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("yall'd've", "y'all'd've"),
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("oclock the dog", "o'clock dog"),
        ("a.", ""),
    ],
)
def test_normalisation(answer: str, normalised: str) -> None:
    assert normalise_answer(answer) == normalised


@pytest.mark.parametrize(("count", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_ten_people_make_the_known_scores(count: int, score: float) -> None:
    others = ["blue"] * (10 - count)
    assert soft_score("red", ["red"] * count + others) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("people", [2, 3, 4, 5, 10])
def test_the_score_is_the_mean_of_what_is_left_when_one_is_left_out(people: int) -> None:
    for given in product("ab", repeat=people):
        left = [given[:one] + given[one + 1 :] for one in range(people)]
        expected = sum(min(several.count("b") / 3, 1) for several in left) / people
        assert soft_score("b", given) == pytest.approx(expected, abs=1e-12)


def test_answers_are_normalised_only_where_people_differ() -> None:
    agreed, differing = ["The sea"] * 10, ["The sea"] * 9 + ["water"]
    assert soft_score("sea", agreed) == 0 and soft_score(" The sea\n", agreed) == 1
    assert soft_score("sea", differing) == 1 and soft_score("a SEA", differing) == 1
    # blanks around an answer and line ends do not make people differ
    assert soft_score("two", ["2"] * 9 + [" 2\n"]) == 0 and soft_score("two", ["2"] * 9 + ["two"]) == 1


def test_an_empty_answer_is_an_answer() -> None:
    assert soft_score("", ["a", "an", "the", "", *["red"] * 6]) == 1
    assert soft_score("", ["red"] * 10) == 0


@pytest.mark.parametrize("answers", [[], ["red"]])
def test_leaving_one_out_needs_two(answers: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{len(answers)} answers"):
        answer_scores(answers)


QUESTIONS = [
    Question("1", ("yes",) * 10, "yes/no", ("9",)),
    Question("2", ("red",) * 2 + ("blue",) * 8, "other", ("9",)),
    Question("3", ("2",) * 3 + ("two",) * 1 + ("3",) * 6, "number", ("8",)),
]


def test_figures_by_answer_type() -> None:
    each: dict[str, dict[str, float]] = {}
    predictions = {"1": "yes", "2": "red", "3": "2", "stranger": "no"}
    figures = measure_vqa(predictions, QUESTIONS, Settings(split="val", seed=3), each)
    values = {figure.name: figure.value for figure in figures}
    assert values == pytest.approx(
        {
            "vqa.accuracy": 2.6 / 3,
            "vqa.accuracy_number": 1,
            "vqa.accuracy_other": 0.6,
            "vqa.accuracy_yes_no": 1,
        }
    )
    assert each["vqa.accuracy"] == pytest.approx({"1": 1, "2": 0.6, "3": 1})
    whole = figures[0]
    # two pictures are drawn: (1 + .6) / 2 and 1 are the extremes
    assert whole.low == pytest.approx(0.8) and whole.high == pytest.approx(1) and whole.n == 3
    assert whole.split == "val" and whole.normalisation and whole.scale == 100 and whole.reference_sha256
    assert whole.detail == "10 answers a question; interval over 2 pictures"


def test_intervals_hold_the_truth_where_questions_of_a_picture_depend_on_each_other() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for sample in range(120):
        right = np.repeat(generator.random(60) < 0.7, 5)
        questions = [Question(str(n), ("yes",) * 10, "", (str(n // 5),)) for n in range(len(right))]
        predictions = {str(n): "yes" if good else "no" for n, good in enumerate(right)}
        figure = measure_vqa(predictions, questions, Settings(seed=sample, resamples=200))[0]
        assert figure.low is not None and figure.high is not None
        held += figure.low <= 0.7 <= figure.high
    # questions drawn alone would hold it in about 62%
    assert held / 120 > 0.88


@pytest.mark.parametrize(
    ("predictions", "questions", "message"),
    [
        (
            {"1": "yes", "7": "no"},
            QUESTIONS,
            r"no answer to 2 of 3 questions of the questions \(first: 2\); ",
        ),
        ({"q1": "yes"}, QUESTIONS, r"no answer to 3 of 3 .*\(first: 1; its own first: q1\)"),
        ({"1": "yes"}, QUESTIONS[:1] * 2, "question 1 is there twice"),
        ({"1": "yes"}, [Question("1", ("yes",))], "question 1 has 1 answer; "),
        ({"1": "yes"}, [Question("1", ())], r"question 1 has 0 answers \(a test split hides them\)"),
        ({"1": "yes"}, [], "no question to measure"),
    ],
)
def test_what_cannot_be_measured_is_named(predictions: dict, questions: list[Question], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_vqa(predictions, questions)
