"""NLVR2's accuracy and consistency. Values are derived by hand from the official script's rules."""

from __future__ import annotations

import pytest

from diptych.eval.answers.nlvr2 import measure_nlvr2, statement_group, truth
from diptych.eval.answers.questions import Question, Settings
from diptych.eval.errors import UserError

# two sentences about set 7 with two pairs each, and one of set 8 with one pair
STATEMENTS = [
    Question("dev-7-0-0", ("True",)),
    Question("dev-7-1-0", ("False",)),
    Question("dev-7-0-1", ("true",)),
    Question("dev-7-1-1", ("False",)),
    Question("dev-8-0-0", ("False",)),
]
JUDGED = {"dev-7-0-0": True, "dev-7-1-0": False, "dev-7-0-1": True, "dev-7-1-1": True, "dev-8-0-0": False}


def test_accuracy_and_consistency() -> None:
    each: dict[str, dict[str, float]] = {}
    accuracy, consistency = measure_nlvr2(JUDGED | {"other": True}, STATEMENTS, Settings(split="dev"), each)
    assert (accuracy.name, accuracy.value, accuracy.n) == ("nlvr2.accuracy", pytest.approx(4 / 5), 5)
    assert (consistency.name, consistency.value, consistency.n) == (
        "nlvr2.consistency",
        pytest.approx(2 / 3),
        3,
    )
    assert "5 statements, 1 with one pair alone" in str(consistency.detail)
    assert "3 sentences" in str(accuracy.detail)
    assert accuracy.split == consistency.split == "dev" and accuracy.normalisation and accuracy.scale == 100
    assert each["nlvr2.accuracy"]["dev-7-1-1"] == 0 and sum(each["nlvr2.accuracy"].values()) == 4
    # a sentence drawn three times is the extreme of both: (1/2, 0) and (1, 1)
    assert accuracy.low == pytest.approx(0.5, abs=0.02) and accuracy.high == 1
    assert consistency.low == 0 and consistency.high == 1


def test_one_wrong_pair_makes_a_sentence_inconsistent() -> None:
    right = {statement.question_id: truth(statement.answers[0]) is True for statement in STATEMENTS}
    assert [figure.value for figure in measure_nlvr2(right, STATEMENTS)] == [1, 1]
    wrong = right | {"dev-7-0-0": False, "dev-7-0-1": False}
    assert [figure.value for figure in measure_nlvr2(wrong, STATEMENTS)] == pytest.approx([3 / 5, 1 / 3])


@pytest.mark.parametrize(
    ("identifier", "group", "expected"),
    [
        ("dev-850-0-0", None, "dev-850--0"),
        ("test1-0-1-2", "own", "test1-0--2"),
        ("12", "own", "own"),
        ("12-3", None, None),
        ("-850-0-0", None, None),
    ],
)
def test_what_the_pairs_of_a_sentence_have_in_common(
    identifier: str, group: str | None, expected: str
) -> None:
    assert statement_group(Question(identifier, ("True",), group=group)) == expected


def test_groups_of_other_files_and_statements_without_one() -> None:
    statements = [Question(str(n), ("True",), group=str(n // 2)) for n in range(4)]
    judged = {"0": True, "1": True, "2": True, "3": False}
    assert [figure.value for figure in measure_nlvr2(judged, statements)] == [0.75, 0.5]
    accuracy, consistency = measure_nlvr2(
        judged, [*statements[:3], Question("3", ("False",))], Settings(questions="own.parquet")
    )
    assert accuracy.value == 1 and "4 statements" in str(accuracy.detail)
    assert consistency.value is None and "own.parquet: 3 is no identifier" in str(consistency.reason)


@pytest.mark.parametrize(
    ("judged", "statements", "message"),
    [
        ({"dev-7-0-0": True}, STATEMENTS, "no answer to 4 of 5 questions .*first: dev-7-1-0"),
        (JUDGED, [*STATEMENTS, STATEMENTS[0]], "dev-7-0-0 is there twice"),
        ({"1": True}, [Question("1", ("yes",))], "statement 1 has yes; "),
        ({"1": True}, [Question("1", ("True", "True"))], "statement 1 has True, True"),
        ({"1": True}, [Question("1", ())], "statement 1 has no answer"),
    ],
)
def test_what_cannot_be_measured_is_named(judged: dict, statements: list[Question], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_nlvr2(judged, statements)
