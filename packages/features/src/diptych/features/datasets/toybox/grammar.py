"""Captions of Toybox scenes: a small grammar with paraphrase and human-like omission.

Every caption names the main object with its colour first; whether it says where, how large, on
what scenery and what else is there is left to chance, as human captions leave things out. Captions
have 8 to 16 words and end in a full stop that is a word of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .world import VERBS, Scene, Thing

_PLURAL = {"fish": "fish"}
_NUMBER = {2: "two", 3: "three"}
_LARGE = ("big", "large")
_SMALL = ("small", "little")
_SCENERY = {
    "desert": ("in the desert", "over the sand"),
    "field": ("in a field", "over the grass"),
    "night": ("at night", "in the dark"),
    "sea": ("at sea", "over the water"),
    "snow": ("in winter", "over the snow"),
}
_ABOVE = ("above", "over")
_BELOW = ("below", "under")
_BESIDE = {"left": ("left of", "to the left of"), "right": ("right of", "to the right of")}


@dataclass(frozen=True)
class GrammarConfig:
    """Shares (0 to 1) of captions that mention what a human might leave out."""

    where: float
    size: float
    scenery: float
    second: float
    third: float


def describe(scene: Scene, rng: np.random.Generator, config: GrammarConfig) -> str:
    """One caption of a scene: lower case, 8 to 16 words, a full stop at the end."""
    mentions = {
        "where": rng.random() < config.where,
        "size": rng.random() < config.size,
        "scenery": rng.random() < config.scenery,
        "second": bool(scene.others) and rng.random() < config.second,
        "third": len(scene.others) > 1 and rng.random() < config.third,
    }
    # A sentence that is too short gains what it left out, in the order in which people would add it,
    # and one that is too long loses details again.
    additions = ["scenery", "where", "second", "size"]
    omissions = ["third", "size", "scenery", "where"]
    sentence = _sentence(scene, rng, mentions)
    while not 8 <= len(sentence) <= 16:
        if len(sentence) > 16:
            mentions[omissions.pop(0)] = False
        elif additions:
            addition = additions.pop(0)
            mentions[addition] = addition != "second" or bool(scene.others)
        sentence = _sentence(scene, rng, mentions)
    return " ".join(sentence) + " ."


def _sentence(scene: Scene, rng: np.random.Generator, mentions: dict[str, bool]) -> list[str]:
    main = scene.main[0]
    subject = _main_phrase(scene, rng, mentions["size"])
    place = _place(scene.main, rng) if mentions["where"] else []
    scenery = _pick(rng, _SCENERY[scene.scenery]).split() if mentions["scenery"] else []
    verb = _verb(main, len(scene.main), rng)
    other: list[str] = []
    if mentions["second"]:
        other = _second_phrase(scene, scene.others[0], rng, bool(place))
        if mentions["third"]:
            other += ["and", *_noun_phrase(scene.others[1])]
    form = rng.random()
    if form < 0.6:
        return [*subject, verb, *place, *other, *scenery]
    if form < 0.8:
        return [*subject, verb, *scenery, *place, *other]
    there = ["there", "is" if len(scene.main) == 1 else "are"]
    return [*there, *subject, *place, *scenery, *other]


def _main_phrase(scene: Scene, rng: np.random.Generator, size: bool) -> list[str]:
    main, number = scene.main[0], len(scene.main)
    if number > 1:
        return [_NUMBER[number], main.color, _PLURAL.get(main.label, main.label + "s")]
    adjective = [_pick(rng, _LARGE if scene.large else _SMALL)] if size else []
    return ["a", *adjective, main.color, main.label]


def _noun_phrase(thing: Thing) -> list[str]:
    return ["a", thing.color, thing.label]


def _verb(thing: Thing, number: int, rng: np.random.Generator) -> str:
    verb = _pick(rng, VERBS[thing.label][thing.row])
    if number == 1:
        return verb
    return "fly" if verb == "flies" else verb[:-1]


def _place(things: tuple[Thing, ...], rng: np.random.Generator) -> list[str]:
    """Where one thing is, or in which row several are."""
    row = ("top", "bottom")[things[0].row]
    if len(things) > 1:
        return _pick(rng, (f"at the {row}", f"in the {row} row")).split()
    column = ("left", "middle", "right")[things[0].column]
    if column == "middle":
        return _pick(rng, (f"at the {row}", f"in the {row} middle")).split()
    return _pick(rng, (f"at the {row} {column}", f"in the {row} {column} corner")).split()


def _second_phrase(scene: Scene, second: Thing, rng: np.random.Generator, main_is_placed: bool) -> list[str]:
    """The second object, related to the main one where a plain word for it exists, else placed."""
    main = scene.main[0]
    relation: tuple[str, ...] = ()
    if len(scene.main) == 1 and main.column == second.column:
        relation = _ABOVE if main.row < second.row else _BELOW
    elif len(scene.main) == 1 and main.row == second.row:
        relation = _BESIDE["left" if main.column < second.column else "right"]
    if relation and (not main_is_placed or rng.random() < 0.7):
        return [*_pick(rng, relation).split(), *_noun_phrase(second)]
    return [_pick(rng, ("with", "and")), *_noun_phrase(second), *_place((second,), rng)]


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
