"""Which words of a caption are right and which are wrong, where the objects of its picture are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diptych.eval.captions.facts import ADJECTIVES, NUMBERS, label_at, label_forms
from diptych.eval.captions.tokens import tokenize

Kind = Literal["object", "color", "count", "place"]

_DETERMINERS = frozenset(["a", "an", "the", "some", "its", "his", "her", "their", "another"])
_PLACES = frozenset(("top", "bottom", "left", "right"))
# axis and sign: the subject's centre minus the other's, y downwards
_RELATIONS = {"above": (1, -1), "over": (1, -1), "below": (1, 1), "under": (1, 1)}
_SIDES = {"left": (0, -1), "right": (0, 1)}


@dataclass(frozen=True)
class Mark:
    """A word as it stands in the caption. right: None where nothing is known or nothing is said about the picture's
    objects; kind: what the word says, None where it says nothing of that."""

    text: str
    right: bool | None = None
    kind: Kind | None = None


@dataclass(frozen=True)
class _Mention:
    """Words first..last (its colour and number included) that name things of a class; `found` are those that fit."""

    first: int
    last: int
    found: Sequence[Mapping[str, Any]]


def mark_words(
    caption: str,
    objects: Sequence[Mapping[str, Any]] | None,
    labels: Collection[str],
    colors: Collection[str],
    size: tuple[int, int] | None = None,
) -> list[Mark]:
    """The caption's words, each with its verdict.

    objects: of the picture, with `label`, `attributes` and, in pixels, `bbox` (x0 y0 x1 y1); None: nothing is known.
    labels, colors: every class and colour that any picture could have; other words say nothing. size: width and height
    of the picture; without it no word about a place is judged.

    A class is right where the picture has an object of it, a colour where an object of the class that it stands before
    has it (any object, where the picture has none of the class), a number where so many objects are of the class, and
    colour, that it stands before. "top", "bottom", "left", "right" behind "the" speak about the object named last (halves
    of the height, thirds of the width); "left of", "right of", "above", "over", "below" and "under" compare it with the
    object that follows. Words about an object that is not there are not judged for its place.
    """
    pieces = caption.split()
    if objects is None:
        return [Mark(piece) for piece in pieces]
    # tokenize cuts a piece in several words or, a full stop, in none; only the first says something here
    words = [(tokenize(piece) or [""])[0] for piece in pieces]
    right: dict[int, tuple[bool, Kind]] = {}
    mentions = _mentions(words, objects, labels, colors, right)
    if size is not None:
        _judge_places(words, mentions, size, right)
    return [
        Mark(piece, *right[index]) if index in right else Mark(piece) for index, piece in enumerate(pieces)
    ]


def _mentions(
    words: Sequence[str],
    objects: Sequence[Mapping[str, Any]],
    labels: Collection[str],
    colors: Collection[str],
    right: dict[int, tuple[bool, Kind]],
) -> list[_Mention]:
    """Find and judge classes with their colours and numbers, from left to right."""
    forms = label_forms(labels)
    mentions: list[_Mention] = []
    index = 0
    while index < len(words):
        label, length = label_at(words, index, forms)
        if label is None:
            index += 1
            continue
        things = [thing for thing in objects if thing["label"] == label]
        for offset in range(length):
            right[index + offset] = (bool(things), "object")
        first, color, number = _modifiers(words, index, colors)
        found = things
        if color is not None:
            known = any(thing["attributes"] for thing in things or objects)
            found = [thing for thing in things if words[color] in thing["attributes"]]
            if known:
                pool = things or objects
                right[color] = (any(words[color] in thing["attributes"] for thing in pool), "color")
            else:
                found = things
        if number is not None:
            right[number] = (len(found) == NUMBERS[words[number]], "count")
        mentions.append(_Mention(first, index + length - 1, found))
        index += length
    return mentions


def _modifiers(
    words: Sequence[str], noun: int, colors: Collection[str]
) -> tuple[int, int | None, int | None]:
    """Places of the first word that belongs to the noun, of its colour and of its number."""
    first, color, number = noun, None, None
    while first > 0:
        word = words[first - 1]
        if word in colors and color is None:
            color = first - 1
        elif word in NUMBERS and number is None:
            number = first - 1
        elif word not in ADJECTIVES and word not in _DETERMINERS:
            break
        first -= 1
    return first, color, number


def _judge_places(
    words: Sequence[str],
    mentions: Sequence[_Mention],
    size: tuple[int, int],
    right: dict[int, tuple[bool, Kind]],
) -> None:
    # scenery fills its picture and is nowhere in it
    mentions = [mention for mention in mentions if not any(_fills(thing, size) for thing in mention.found)]
    for index, word in enumerate(words):
        before = [mention for mention in mentions if mention.last < index]
        if index in right or not before or not before[-1].found:
            continue
        subjects = before[-1].found
        following = words[index + 1] if index + 1 < len(words) else ""
        if word in _SIDES and following == "of":
            relation, start = _SIDES[word], index + 2
        elif word in _RELATIONS:
            relation, start = _RELATIONS[word], index + 1
        elif word in _PLACES and following != "of" and _is_placed(words, index):
            right[index] = (any(_is_at(thing, word, size) for thing in subjects), "place")
            continue
        else:
            continue
        other = next((mention for mention in mentions if mention.first == start), None)
        if other is not None and other.found:
            axis, sign = relation
            pairs = [
                (_centre(one), _centre(another))
                for one in subjects
                for another in other.found
                if one is not another
            ]
            right[index] = (any((one[axis] - two[axis]) * sign > 0 for one, two in pairs), "place")


def _is_placed(words: Sequence[str], index: int) -> bool:
    """Whether "the" introduces the place: "at the bottom left", and not "a left shoe"."""
    while index > 0 and words[index - 1] in _PLACES:
        index -= 1
    return index > 0 and words[index - 1] == "the"


def _is_at(thing: Mapping[str, Any], place: str, size: tuple[int, int]) -> bool:
    x, y = _centre(thing)
    if place in _SIDES:
        return x < size[0] / 3 if place == "left" else x > size[0] * 2 / 3
    return (y < size[1] / 2) == (place == "top")


def _fills(thing: Mapping[str, Any], size: tuple[int, int]) -> bool:
    x0, y0, x1, y1 = thing["bbox"]
    return x1 - x0 > 0.95 * size[0] and y1 - y0 > 0.95 * size[1]


def _centre(thing: Mapping[str, Any]) -> tuple[float, float]:
    x0, y0, x1, y1 = thing["bbox"]
    return (x0 + x1) / 2, (y0 + y1) / 2
