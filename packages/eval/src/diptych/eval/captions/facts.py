"""Does a caption name an object with its colour? How many objects of a kind does it speak of?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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

NUMBERS = {
    word: number
    for number, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=2
    )
}
_ONE = frozenset(("a", "an", "one", "another"))

LabelForm = tuple[str, list[str], set[str]]
"""A label, the words before its noun, and the noun's forms."""


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


def label_forms(labels: Iterable[str]) -> list[LabelForm]:
    """What :func:`label_at` looks for, labels of more words first."""
    return [
        (label, modifiers, {noun, *plurals(noun)})
        for label in sorted(labels, key=lambda label: -len(label.split()))
        for *modifiers, noun in [tokenize(label)]
    ]


def label_at(words: Sequence[str], index: int, forms: Sequence[LabelForm]) -> tuple[str | None, int]:
    """The label that is named at `index`, singular or plural, and the number of its words; (None, 0) for none."""
    for label, modifiers, nouns in forms:
        end = index + len(modifiers)
        if end < len(words) and words[end] in nouns and list(words[index:end]) == modifiers:
            return label, len(modifiers) + 1
    return None, 0


def said_counts(caption: str, labels: Iterable[str]) -> dict[str, int]:
    """How many objects of each of `labels` the caption speaks of, for those that it numbers: "a red kite above two blue kites"
    speaks of three kites.

    A number is what stands before the noun ("a", "one", "two" to "ten", figures), with words between that are no number and no
    "of": "a pair of kites" does not say one. A noun without one ("boats", "the boat") may mean any number, or what was named
    before: its label is left out unless "the" ("the boat", "the two boats") repeats a label that was numbered. Labels of several
    words are matched as a whole.
    """
    words, forms = tokenize(caption), label_forms(labels)
    counts: dict[str, int] = {}
    unknown: set[str] = set()
    number: int | None = None  # before the noun that comes next
    repeated = False  # by "the", before that noun
    index = 0
    while index < len(words):
        label, length = label_at(words, index, forms)
        word = words[index]
        if label is not None:
            if not (repeated and label in counts):
                if number is None:
                    unknown.add(label)
                else:
                    counts[label] = counts.get(label, 0) + number
            number, repeated = None, False
        elif word in _ONE or word in NUMBERS or word.isdecimal():
            number = 1 if word in _ONE else NUMBERS[word] if word in NUMBERS else int(word)
            repeated = index > 0 and words[index - 1] == "the"
        elif word == "the":
            number, repeated = None, True
        elif word == "of":
            number = None
        index += length or 1
    return {label: count for label, count in counts.items() if label not in unknown}
