"""Does a caption name an object with its colour? How many objects of a kind does it speak of?"""

from __future__ import annotations

from collections.abc import Iterable

from diptych.eval.captions.tokens import tokenize

_IRREGULAR = {
    "aircraft": "aircraft",
    "child": "children",
    "deer": "deer",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "person": "people",
    "sheep": "sheep",
    "shelf": "shelves",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}

# Words that may stand between a colour and its noun. A list of adjectives, not of anything: in "a red
# ball kite" the kite is not said to be red.
ADJECTIVES = frozenset(
    tokenize(
        "big bright broad dark empty flat giant great high huge large light little long low metal narrow new "
        "old open plain pretty round shiny short single small square tall thick thin tiny wide wooden young"
    )
)


_ONE = frozenset(("a", "an", "one", "another"))
_NUMBERS = {
    word: number
    for number, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=2
    )
}


def plurals(noun: str) -> set[str]:
    """The plural forms that a caption may use: boxes, kites, fish and fishes, houses, puppies, knives."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        regular = noun + "es"
    elif noun.endswith("y") and noun[-2:-1] not in set("aeiou"):
        regular = noun[:-1] + "ies"
    elif noun.endswith("fe"):
        regular = noun[:-2] + "ves"
    else:
        regular = noun + "s"
    irregular = _IRREGULAR.get(noun)
    for ending in ("man", "child", "mouse"):
        if noun.endswith(ending):
            irregular = noun[: -len(ending)] + _IRREGULAR[ending]
    return {regular} if irregular is None else {regular, irregular}


def names_object(caption: str, label: str, attribute: str) -> bool:
    """Whether the caption names `label`, singular or plural, with `attribute` before it.

    The attribute stands directly before the noun or with adjectives between ("red little boats"); an
    attribute of another noun does not count. Labels of several words are matched as a whole.
    """
    words = tokenize(caption)
    *modifiers, noun = tokenize(label)
    wanted = tokenize(attribute)
    for end in range(len(words)):
        if words[end] != noun and words[end] not in plurals(noun):
            continue
        start = end - len(modifiers)
        if start < 0 or words[start:end] != modifiers:
            continue
        while start > 0 and words[start - 1] in ADJECTIVES and words[start - len(wanted) : start] != wanted:
            start -= 1
        if start >= len(wanted) and words[start - len(wanted) : start] == wanted:
            return True
    return False


def said_counts(caption: str, labels: Iterable[str]) -> dict[str, int]:
    """How many objects of each of `labels` the caption speaks of, for those that it numbers: "a red kite above two blue kites"
    speaks of three kites.

    A number is what stands before the noun ("a", "one", "two" to "ten", figures), with words between that are no number. A noun
    without one ("boats", "the boat") may mean any number, or what was named before: its label is left out unless "the" repeats a
    label that was numbered. Labels of several words are matched as a whole.
    """
    words = tokenize(caption)
    kinds = {
        (*modifiers, form): label
        for label in labels
        for *modifiers, noun in [tokenize(label)]
        for form in (noun, *plurals(noun))
    }
    longest = max(map(len, kinds), default=0)
    counts: dict[str, int] = {}
    unknown: set[str] = set()
    number: int | None = None  # before the noun that comes next
    repeated = False
    start = 0
    while start < len(words):
        lengths = range(min(longest, len(words) - start), 0, -1)
        length = next((n for n in lengths if tuple(words[start : start + n]) in kinds), 0)
        word = words[start]
        if length:
            label = kinds[tuple(words[start : start + length])]
            if number is not None:
                counts[label] = counts.get(label, 0) + number
            elif not (repeated and label in counts):
                unknown.add(label)
            number, repeated = None, False
        elif word in _ONE:
            number = 1
        elif word in _NUMBERS or word.isdecimal():
            number = _NUMBERS[word] if word in _NUMBERS else int(word)
        elif word == "the":
            number, repeated = None, True
        start += length or 1
    return {label: count for label, count in counts.items() if label not in unknown}
