"""Does a caption name an object with its colour?"""

from __future__ import annotations

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
