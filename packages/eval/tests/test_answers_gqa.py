"""GQA's metrics. Values are derived by hand from the official script's rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diptych.eval.answers.gqa import measure_gqa
from diptych.eval.answers.questions import Choices, Question, Settings
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure

COLOURS = Choices(frozenset({"red", "blue", "green"}), frozenset({"red", "blue"}))
YES_NO = Choices(frozenset({"yes", "no"}), frozenset({"yes", "no"}))
QUESTIONS = [
    Question("1", ("red",), "query.attr", ("9",), "colour", ("1", "2", "5"), COLOURS),
    Question("2", ("yes",), "verify.attr", ("9",), None, ("2",), YES_NO),
    Question("3", ("blue",), "query.attr", ("8",), "colour", ("4", "6"), COLOURS),
    Question("4", ("left",), "choose.rel", ("8",), "side", ("3", "2"), None),
    Question("5", ("no",), "verify.obj", ("9",), None, ("1",), None, balanced=False),
    Question("6", ("yes",), "verify.attr", ("8",), None, (), None, balanced=False),
]
ANSWERS = {"1": "red", "2": "yes", "3": "green", "4": "left", "5": "yes", "6": "yes"}


def measured(
    predictions: dict[str, str], questions: list[Question], /, **settings: object
) -> dict[str, Figure]:
    figures = measure_gqa(predictions, questions, Settings(resamples=50, **settings))  # type: ignore[arg-type]
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name.removeprefix("gqa."): figure for figure in figures}


def test_all_figures() -> None:
    figures = measured(ANSWERS, QUESTIONS, split="val")
    values = {name: figure.value for name, figure in figures.items()}
    assert values == pytest.approx(
        {
            "accuracy": 3 / 4,
            "accuracy_binary": 1,
            "accuracy_open": 1 / 2,
            # 1 entails 2 (right) and 5 (wrong); 4 entails 3 (wrong) and 2 (right); 2 only itself; 3 is wrong
            "consistency": 1 / 2,
            "validity": 1,
            "plausibility": 2 / 3,
            # colour: red 1 of 1, blue 0 of 1: (0 + 1) x 2; side: 0 x 1; over 3, by 100
            "distribution": 2 / 3 / 100,
            "accuracy_structural_query": 1 / 2,
            "accuracy_structural_verify": 1,
            "accuracy_structural_choose": 1,
            "accuracy_semantic_attr": 2 / 3,
            "accuracy_semantic_rel": 1,
        }
    )
    counts = {name: figure.n for name, figure in figures.items()}
    assert counts["accuracy"] == 4 and counts["consistency"] == 2 and counts["distribution"] == 3
    assert counts["validity"] == 3 and "3 questions that have choices" in str(figures["validity"].detail)
    for figure in figures.values():
        assert figure.low is not None and figure.high is not None and figure.value is not None
        assert figure.low <= figure.value <= figure.high
        assert figure.split == "val" and figure.normalisation and figure.reference_sha256
    assert figures["accuracy"].scale == 100 and figures["distribution"].scale == 1
    assert "2 pictures" in str(figures["accuracy"].detail)


def test_a_perfect_and_a_lazy_answerer() -> None:
    perfect = measured({question.question_id: question.answers[0] for question in QUESTIONS}, QUESTIONS)
    assert (
        perfect["consistency"].value == 1
        and perfect["distribution"].value == 0 == perfect["distribution"].high
    )
    lazy = measured(dict.fromkeys("123456", "red"), QUESTIONS)
    # colour: red 2 of 1, blue 0 of 1: (1 + 1) x 2; side: left 0 of 1: 1 x 1
    assert lazy["distribution"].value == pytest.approx(5 / 3 / 100)
    assert lazy["validity"].value == pytest.approx(2 / 3)


def test_answers_are_compared_as_they_are_written() -> None:
    assert measured(ANSWERS | {"1": "Red"}, QUESTIONS)["accuracy"].value == 1 / 2


def test_each_gives_the_values_of_questions() -> None:
    each: dict[str, dict[str, float]] = {}
    measure_gqa(ANSWERS, QUESTIONS, Settings(prefix="answer", resamples=2), each)
    assert each == {
        "answer.accuracy": {"1": 1, "2": 1, "3": 0, "4": 1},
        "answer.consistency": {"1": 0.5, "4": 0.5},
    }


def test_the_balanced_file_alone_has_no_consistency() -> None:
    balanced = [question for question in QUESTIONS if question.balanced]
    names = {"questions": "balanced.json", "predictions": "answers.json"}
    figures = measured(ANSWERS, balanced, **names)
    reason = figures["consistency"].reason
    assert figures["consistency"].value is None and reason is not None
    assert "balanced.json has no question 5, which question 1 entails" in reason and "1 others" in reason
    assert figures["accuracy"].value == 3 / 4
    few = {key: answer for key, answer in ANSWERS.items() if key != "6"}
    reason = measured(few, QUESTIONS, **names)["consistency"].reason
    assert "answers.json has no answer to question 6, which question 3 entails" in str(reason)


def test_what_a_split_lacks_has_a_reason_and_no_value() -> None:
    bare = [Question(str(n), ("red",), "colour", entailed=(str(n),)) for n in range(3)]
    figures = measured(dict.fromkeys("012", "red"), bare, questions="own.json")
    missing = {name: figure.reason for name, figure in figures.items() if figure.value is None}
    assert set(missing) == {
        "accuracy_binary",
        "accuracy_open",
        "consistency",
        "validity",
        "plausibility",
        "distribution",
    }
    assert all("own.json" in str(reason) for reason in missing.values())
    assert "question 0 of own.json is of the kind 'colour'" in str(missing["accuracy_open"])
    assert figures["accuracy"].value == figures["accuracy_colour"].value == 1
    assert "3 questions" in str(figures["accuracy"].detail)
    wrong = measured(ANSWERS | {"1": "blue", "4": "right"}, QUESTIONS)["consistency"]
    assert wrong.value is None and "no question that entails others is answered rightly" in str(wrong.reason)
    open_only = measured(ANSWERS, [QUESTIONS[0], *QUESTIONS[4:], replace(QUESTIONS[1], balanced=False)])
    assert open_only["accuracy_binary"].reason == "no question is binary"


def test_the_interval_of_the_distribution_has_its_value_in_it_and_narrows_with_questions() -> None:
    generator = np.random.default_rng(0)

    def drawn(count: int) -> Figure:
        questions, predictions = [], {}
        for number in range(count):
            answer = str(generator.choice(["a", "b", "c"]))
            questions.append(Question(str(number), (answer,), "query.x", (str(number),), "g"))
            predictions[str(number)] = "a" if generator.random() < 0.5 else answer
        return measured(predictions, questions)["distribution"]

    widths = []
    for count in (60, 1500):
        figure = drawn(count)
        assert figure.value is not None and figure.low is not None and figure.high is not None
        assert 0 <= figure.low < figure.value < figure.high
        widths.append((figure.high - figure.low) / figure.value)
    assert widths[1] < widths[0] / 2
    # every answer as often as it is true, of other questions: any resample is further off than that
    order = np.random.default_rng(1).permutation(60)
    questions = [Question(str(n), (str(n % 3),), "query.x", (str(n),), "g") for n in range(60)]
    figure = measured({str(n): str(order[n] % 3) for n in range(60)}, questions)["distribution"]
    assert figure.value == 0 == figure.low and figure.high is not None and figure.high > 0


@pytest.mark.parametrize(
    ("predictions", "questions", "message"),
    [
        ({"1": "red"}, QUESTIONS, "no answer to 3 of 4 questions of the questions .first: 2"),
        (ANSWERS, [*QUESTIONS, QUESTIONS[2]], "question 3 is there twice"),
        (ANSWERS, [Question("1", ("red", "blue"), "query.attr")], "question 1 has 2 answers"),
        (ANSWERS, QUESTIONS[4:], "no question is balanced"),
        (ANSWERS, [], "no question to measure"),
    ],
)
def test_what_cannot_be_measured_is_named(predictions: dict, questions: list[Question], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_gqa(predictions, questions)
