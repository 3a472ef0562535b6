"""Statements about two Toybox pictures in NLVR2's manner: each with pairs that make it true and pairs that do not.

A statement is about a property of each picture (has it a kite, how many things, which scenery) and true or false by
the two values. Pictures are found by these values, so that of every statement's pairs a half is true, whatever is rare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych.features.datasets.toybox.asking import named
from diptych.features.datasets.toybox.chances import seen_colors
from diptych.features.datasets.toybox.grammar import plural
from diptych.features.datasets.toybox.world import CLASSES, Scene

KINDS = (
    "statement.both", "statement.one", "statement.any", "statement.left", "statement.right",
    "statement.more", "statement.count", "statement.count_all", "statement.scenery",
)  # fmt: skip
PAIRS = 4  # of pictures for every statement, half of them true
_NUMBERS = ("one", "two", "three", "four", "five", "six")
_TRIES = 50  # to find a statement that the pictures make true and false
_HAS: dict[str, tuple[tuple[str, ...], Callable[[bool, bool], bool]]] = {
    "statement.both": (
        ("both pictures show a {}", "there is a {} in both pictures"),
        lambda left, right: left and right,
    ),
    "statement.one": (
        ("only one picture shows a {}", "there is a {} in only one picture"),
        lambda left, right: left != right,
    ),
    "statement.any": (
        ("at least one picture shows a {}", "there is a {} in at least one picture"),
        lambda left, right: left or right,
    ),
    "statement.left": (
        ("the left picture shows a {}", "there is a {} in the left picture"),
        lambda left, right: left,
    ),
    "statement.right": (
        ("the right picture shows a {}", "there is a {} in the right picture"),
        lambda left, right: right,
    ),
}


@dataclass(frozen=True)
class _Statement:
    """kind, the words, a name of the property, its value in a scene, and what the two values make of the words."""

    kind: str
    words: str
    of: tuple[str | None, ...]
    value: Callable[[Scene], Hashable]
    holds: Callable[[Any, Any], bool]


@dataclass
class Statements:
    """Statements about the pictures of a split.

    scenes: of the split, in the order of their numbers. colored: share of names of things that have the color too.
    """

    scenes: Sequence[Scene]
    colored: float
    _found: dict[tuple[str | None, ...], dict[Any, list[int]]] = field(default_factory=dict)

    def group(self, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """One statement with PAIRS pairs of pictures, half true, in random order.

        Yields dictionaries of kind, question, answers (one, "true" or "false") and pictures: the numbers of the left
        and the right one. Nothing where the pictures are too few or too much alike.
        """
        for _ in range(_TRIES):
            statement = _state(rng, self.colored)
            pictures = self._by_value(statement)
            pairs = [
                (left, right)
                for left in pictures
                for right in pictures
                if left != right or len(pictures[left]) > 1
            ]
            sides = [[pair for pair in pairs if statement.holds(*pair) == truth] for truth in (True, False)]
            if all(sides):
                break
        else:
            return
        for place in rng.permutation(PAIRS):
            truth = bool(place % 2)
            possible = sides[0] if truth else sides[1]
            left, right = possible[int(rng.integers(len(possible)))]
            yield {
                "kind": statement.kind,
                "question": statement.words,
                "answers": ["true" if truth else "false"],
                "pictures": _two(rng, pictures[left], pictures[right]),
            }

    def _by_value(self, statement: _Statement) -> dict[Any, list[int]]:
        """The numbers of the pictures by the value of the statement's property; looked up once."""
        if statement.of not in self._found:
            found = defaultdict(list)
            for number, scene in enumerate(self.scenes):
                found[statement.value(scene)].append(number)
            self._found[statement.of] = dict(found)
        return self._found[statement.of]


def _two(rng: np.random.Generator, lefts: list[int], rights: list[int]) -> tuple[int, int]:
    """A picture of each list, and not the same one."""
    left = lefts[int(rng.integers(len(lefts)))]
    while (right := rights[int(rng.integers(len(rights)))]) == left:
        pass
    return left, right


def _state(rng: np.random.Generator, colored: float) -> _Statement:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    label = CLASSES[int(rng.integers(len(CLASSES)))]
    if kind in _HAS:
        colors = seen_colors(label)
        color = colors[int(rng.integers(len(colors)))] if rng.random() < colored else None
        wordings, holds = _HAS[kind]
        words = wordings[int(rng.integers(len(wordings)))].format(named(color, label))
        return _Statement(kind, words, ("has", label, color), lambda scene: _has(scene, label, color), holds)
    if kind == "statement.more":
        more, fewer = (("left", "right"), ("right", "left"))[int(rng.integers(2))]
        words = (
            f"the {more} picture shows more things than the {fewer} picture",
            f"there are fewer things in the {fewer} picture than in the {more} picture",
        )[int(rng.integers(2))]
        sign = 1 if more == "left" else -1
        return _Statement(kind, words, ("things",), _things, lambda left, right: sign * (left - right) > 0)
    if kind == "statement.count":
        number = int(rng.integers(1, 5))
        words = f"there {_number(number, label)} in all"
        return _Statement(kind, words, ("count", label), lambda scene: _count(scene, label), _sum_is(number))
    if kind == "statement.count_all":
        number = int(rng.integers(2, 7))
        return _Statement(
            kind, f"there {_number(number, 'thing')} in all", ("things",), _things, _sum_is(number)
        )
    words = ("both pictures have the same scenery", "the scenery is the same in both pictures")[
        int(rng.integers(2))
    ]
    return _Statement(
        kind, words, ("scenery",), lambda scene: scene.scenery, lambda left, right: left == right
    )


def _number(number: int, label: str) -> str:
    return f"is one {label}" if number == 1 else f"are {_NUMBERS[number - 1]} {plural(label)}"


def _sum_is(number: int) -> Callable[[int, int], bool]:
    return lambda left, right: left + right == number


def _has(scene: Scene, label: str, color: str | None) -> bool:
    return any(thing.label == label and color in (None, thing.color) for thing in scene.things)


def _things(scene: Scene) -> int:
    return len(scene.things)


def _count(scene: Scene, label: str) -> int:
    return sum(thing.label == label for thing in scene.things)
