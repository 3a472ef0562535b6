"""Answers from the words of a question alone: the floor beside every figure of answers."""

from __future__ import annotations

from diptych.eval.answers.words_alone import answers_from_words

TRAINING = [
    ("is there a kite?", "exists", ["yes"] * 9 + ["no"]),
    ("is there a kite?", "exists", ["no"] * 10),
    ("is there a boat?", "exists", ["Yes"] * 10),
    ("where is it?", "place", ["two", "2", "left"]),
]


def test_same_words_then_same_kind_then_all() -> None:
    asked = [
        ("is there a kite?", "exists"),  # 9 yes, 11 no
        ("is there a tree?", "exists"),  # of the kind: 19 yes, 11 no
        ("where is it?", "place"),  # normalised: "two" is 2
        ("what is it?", "object"),  # of all
    ]
    assert answers_from_words(TRAINING, asked) == ["no", "yes", "2", "yes"]


def test_equally_frequent_answers_and_no_training() -> None:
    assert answers_from_words([("a?", "k", ["red", "blue", "a", ""])], [("a?", "k")]) == ["blue"]
    assert answers_from_words([], [("a?", "k")]) == [""]
