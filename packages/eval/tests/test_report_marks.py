from __future__ import annotations

import pytest

from diptych.eval.report.marks import Mark, mark_words

# a red kite at the top left, two blue balls at the bottom, over the sea; pixels of a 60 x 60 picture
KITE = {"bbox": [2.0, 3.0, 18.0, 20.0], "label": "kite", "attributes": ["red"]}
BALLS = [
    {"bbox": [left, 40.0, left + 10, 50.0], "label": "ball", "attributes": ["blue"]} for left in (0.0, 45.0)
]
SEA = {"bbox": [0.0, 0.0, 60.0, 60.0], "label": "sea", "attributes": []}
SCENE = [KITE, *BALLS, SEA]
LABELS, COLORS = {"kite", "ball", "sea", "fish", "traffic light"}, {"red", "blue", "green"}


def judged(caption: str, scene: list[dict] | None = None) -> dict[str, bool]:
    marks = mark_words(caption, SCENE if scene is None else scene, LABELS, COLORS, (60, 60))
    assert " ".join(mark.text for mark in marks) == " ".join(caption.split())
    return {mark.text: mark.right for mark in marks if mark.right is not None}


@pytest.mark.parametrize(
    ("caption", "verdicts"),
    [
        ("A big red kite flies at sea.", {"red": True, "kite": True, "sea.": True}),
        ("a blue kite and a fish", {"blue": False, "kite": True, "fish": False}),
        # of a class that is not there the colour is that of any object
        ("a blue fish", {"blue": True, "fish": False}),
        ("a green fish", {"green": False, "fish": False}),
        ("two blue balls", {"two": True, "blue": True, "balls": True}),
        ("three balls", {"three": False, "balls": True}),
        ("a traffic light", {"traffic": False, "light": False}),
        ("something else happens here", {}),
    ],
)
def test_objects_colors_and_numbers(caption: str, verdicts: dict[str, bool]) -> None:
    assert judged(caption) == verdicts


@pytest.mark.parametrize(
    ("caption", "word", "verdict"),
    [
        ("a kite at the top", "top", True),
        ("a kite in the bottom corner", "bottom", False),
        ("a kite in the top left corner", "left", True),
        ("a kite at the top right", "right", False),
        ("a kite left of the balls", "left", True),
        ("a kite to the right of a ball", "right", True),  # of the ball in the left corner
        ("a kite below a blue ball", "below", False),
        ("a kite over a ball", "over", True),
        ("a kite over the sea", "over", None),  # the sea is everywhere
        ("a fish at the top", "top", None),  # there is none
        ("a kite with a left wing", "left", None),
        ("a kite on top of it", "top", None),
    ],
)
def test_places(caption: str, word: str, verdict: bool | None) -> None:
    marks = mark_words(caption, SCENE, LABELS, COLORS, (60, 60))
    assert [mark.right for mark in marks if mark.text == word] == [verdict]
    assert all(mark.kind == "place" for mark in marks if mark.text == word and verdict is not None)
    unknown = mark_words(caption, SCENE, LABELS, COLORS)  # no size, no places
    assert [mark.right for mark in unknown if mark.text == word] == [None]


def test_what_is_not_known_is_not_judged() -> None:
    assert mark_words("a red kite .", None, LABELS, COLORS) == [
        Mark(word) for word in ("a", "red", "kite", ".")
    ]
    # objects without attributes, such as COCO's: colours are unknown, classes are not
    plain = [{**KITE, "attributes": []}]
    assert judged("a red kite", plain) == {"kite": True}
    assert judged("one red kite and a red fish", plain) == {"kite": True, "fish": False}
