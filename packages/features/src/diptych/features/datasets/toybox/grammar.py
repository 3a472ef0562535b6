"""Captions of Toybox scenes: a small grammar with paraphrase and human-like omission.

Every caption names the main object with its colour first; whether it says where, how large, on
what scenery and what else is there is left to chance, as human captions leave things out. Captions
have 8 to 16 words and end in a full stop that is a word of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diptych.features.datasets.toybox.world import VERBS, Scene, Thing
from diptych.features.ranges import check_shares

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
    """How captions are worded (shares between 0 and 1).

    usual: of paraphrases that are the usual one, the first of its list. As people's words, they are not equally
    likely: between equals it would be chance which ones a model takes to, and trainings would differ by it.
    where, size, scenery, second, third: of captions that mention what a human might leave out.
    """

    usual: float
    where: float
    size: float
    scenery: float
    second: float
    third: float

    def __post_init__(self) -> None:
        check_shares(self, "usual", "where", "size", "scenery", "second", "third")


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
    speaker = _Speaker(scene, rng, config.usual)
    sentence = speaker.sentence(mentions)
    while not 8 <= len(sentence) <= 16:
        if len(sentence) > 16:
            mentions[omissions.pop(0)] = False
        elif additions:
            addition = additions.pop(0)
            mentions[addition] = addition != "second" or bool(scene.others)
        sentence = speaker.sentence(mentions)
    return " ".join(sentence) + " ."


@dataclass(frozen=True)
class _Speaker:
    """Says a scene, as lists of words; every call chooses its wordings anew."""

    scene: Scene
    rng: np.random.Generator
    usual: float

    def sentence(self, mentions: Mapping[str, bool]) -> list[str]:
        scene = self.scene
        subject = self.subject(mentions["size"])
        place = self.place(scene.main) if mentions["where"] else []
        scenery = self.pick(_SCENERY[scene.scenery]).split() if mentions["scenery"] else []
        verb = self.verb()
        other: list[str] = []
        if mentions["second"]:
            other = self.second(main_is_placed=bool(place))
            if mentions["third"]:
                other += ["and", *_noun_phrase(scene.others[1])]
        form = self.rng.random()
        if form < 0.6:
            return [*subject, verb, *place, *other, *scenery]
        if form < 0.8:
            return [*subject, verb, *scenery, *place, *other]
        there = ["there", "is" if len(scene.main) == 1 else "are"]
        return [*there, *subject, *place, *scenery, *other]

    def subject(self, size: bool) -> list[str]:
        main, number = self.scene.main[0], len(self.scene.main)
        if number > 1:
            return [_NUMBER[number], main.color, plural(main.label)]
        adjective = [self.pick(_LARGE if self.scene.large else _SMALL)] if size else []
        return ["a", *adjective, main.color, main.label]

    def verb(self) -> str:
        main = self.scene.main[0]
        verb = self.pick(VERBS[main.label][main.row])
        if len(self.scene.main) == 1:
            return verb
        return "fly" if verb == "flies" else verb[:-1]

    def place(self, things: tuple[Thing, ...]) -> list[str]:
        """Where one thing is, or in which row several are."""
        row = ("top", "bottom")[things[0].row]
        if len(things) > 1:
            return self.pick((f"at the {row}", f"in the {row} row")).split()
        column = ("left", "middle", "right")[things[0].column]
        if column == "middle":
            return self.pick((f"at the {row}", f"in the {row} middle")).split()
        return self.pick((f"at the {row} {column}", f"in the {row} {column} corner")).split()

    def second(self, main_is_placed: bool) -> list[str]:
        """The second object, related to the main one where a plain word for it exists, else placed."""
        main, second = self.scene.main[0], self.scene.others[0]
        relation: tuple[str, ...] = ()
        if len(self.scene.main) == 1 and main.column == second.column:
            relation = _ABOVE if main.row < second.row else _BELOW
        elif len(self.scene.main) == 1 and main.row == second.row:
            relation = _BESIDE["left" if main.column < second.column else "right"]
        if relation and (not main_is_placed or self.rng.random() < 0.7):
            return [*self.pick(relation).split(), *_noun_phrase(second)]
        return [self.pick(("with", "and")), *_noun_phrase(second), *self.place((second,))]

    def pick(self, wordings: tuple[str, ...]) -> str:
        usual, *others = wordings
        return usual if self.rng.random() < self.usual else others[int(self.rng.integers(len(others)))]


def plural(label: str) -> str:
    """The word for several things of a class."""
    return _PLURAL.get(label, label + "s")


def _noun_phrase(thing: Thing) -> list[str]:
    return ["a", thing.color, thing.label]
