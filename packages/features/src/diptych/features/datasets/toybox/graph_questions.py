"""Questions about Toybox scenes in GQA's manner: one true answer each, and what else whoever knows it can answer.

A scene is a graph of things with colors, places and sides, so that it is known what an answer tells (a red kite is
there, and it is not blue) and what one needs to know for another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from diptych.features.datasets.toybox.asking import TRIES, YES_NO, SceneAsker, named
from diptych.features.datasets.toybox.chances import same_color, seen_colors
from diptych.features.datasets.toybox.facts import (
    PLACES,
    SAID,
    SIDES,
    alone_on_its_side,
    classes_of,
    name_of,
    place_of,
    relations,
    singles,
)
from diptych.features.datasets.toybox.world import CLASSES, COLORS, SCENERIES, Scene, Thing

# What is so in a scene: ("there", label), ("absent", label), ("color", label, color), ("at", label, place),
# ("side", side, label, other label), ("scenery", scenery).
Fact = tuple[str, ...]

QUERIES = ("query.attr", "query.cat", "query.rel", "query.global")
OTHERS = (
    "verify.obj", "verify.attr", "verify.rel", "verify.global",
    "choose.attr", "choose.cat", "choose.rel", "choose.global",
    "logical.obj", "compare.attr",
)  # fmt: skip
KINDS = QUERIES + OTHERS
_YES = 0.6  # of all that is asked; of the balanced part a half is no

_SIDEWAYS = "to the left or to the right of", "to the right or to the left of"
_UPWARDS = "above or below", "below or above"


@dataclass(frozen=True)
class _Node:
    """A question with its answer. group: of answers that compete with it, null for yes and no. needs: sets of facts,
    each of which decides the answer; tells: the facts that the answer gives away."""

    kind: str
    question: str
    answer: str
    group: str | None
    valid: tuple[str, ...]
    plausible: tuple[str, ...]
    needs: tuple[frozenset[Fact], ...]
    tells: frozenset[Fact]
    balanced: bool = True


def ask_graph(scene: Scene, rng: np.random.Generator, number: int, colored: float) -> list[dict[str, Any]]:
    """`number` questions about a scene, fewer where there is less to ask; no two in the same words.

    colored: share of names of things that have the color too.
    Returns dictionaries of kind, question, answers (one), group, choices, balanced, and entailed: the places in this
    list of the other questions that the answer decides. Ids are the caller's.
    """
    chosen: dict[str, _Node] = {}
    asker = _GraphAsker(scene, rng, colored)
    waiting = [
        [getattr(asker, kind.replace(".", "_"))() for kind in kinds]
        for kinds in (QUERIES, asker.shuffled(OTHERS))
    ]
    # Queries take turns with all other kinds together: half of GQA's questions are answered by more than yes, no or
    # one of two.
    while any(waiting) and len(chosen) < number:
        for kinds in waiting:
            if not kinds:
                continue
            nodes = kinds.pop(0)
            # some kinds say the same again and again once everything is said
            new = next((node for node in islice(nodes, TRIES) if node.question not in chosen), None)
            if new is not None:
                chosen[new.question] = new
                kinds.append(nodes)
    nodes = list(chosen.values())[:number]
    nodes = [nodes[i] for i in rng.permutation(len(nodes))]
    return [
        {
            "kind": node.kind,
            "question": node.question,
            "answers": [node.answer],
            "group": node.group,
            "choices": {"valid": list(node.valid), "plausible": list(node.plausible)},
            "balanced": node.balanced,
            "entailed": [
                place for place, other in enumerate(nodes) if other is not node and _decides(node, other)
            ],
        }
        for node in nodes
    ]


def _decides(known: _Node, asked: _Node) -> bool:
    return any(needed <= known.tells for needed in asked.needs)


def _closed(*facts: Fact) -> frozenset[Fact]:
    """The facts, and what goes without saying with them."""
    found = set(facts)
    for name, *values in facts:
        if name in ("color", "at"):
            found.add(("there", values[0]))
        elif name == "side":
            side, one, other = values
            found |= {("side", SIDES[side], other, one), ("there", one), ("there", other)}
    return frozenset(found)


@dataclass(frozen=True)
class _GraphAsker(SceneAsker):
    """Asks about one scene, a method a kind; each yields its questions in random order."""

    def query_attr(self) -> Iterator[_Node]:
        for thing in self.shuffled(classes_of(self.scene)):
            words = self.pick(("what color {be} the {name}?", "which color {be} the {name}?"))
            fact = ("color", thing.label, thing.color)
            likely = tuple(dict.fromkeys((*seen_colors(thing.label), thing.color)))
            yield self._open(
                "query.attr", self._said(words, thing), thing.color, "color", tuple(COLORS), likely, fact
            )
            if thing in singles(self.scene):
                place = self.pick(("where is the {name}?", "where in the picture is the {name}?"))
                fact = ("at", thing.label, place_of(thing))
                yield self._open(
                    "query.attr", self._said(place, thing), place_of(thing), "place", PLACES, PLACES, fact
                )

    def query_cat(self) -> Iterator[_Node]:
        for thing in self.shuffled(self.scene.things):
            words = self.pick(("what is at the {}?", "which object is at the {}?")).format(place_of(thing))
            fact = ("at", thing.label, place_of(thing))
            yield self._open("query.cat", words, thing.label, "object", CLASSES, CLASSES, fact)

    def query_rel(self) -> Iterator[_Node]:
        for side, other, thing in self.shuffled(alone_on_its_side(self.scene)):
            words = self.pick(("what is {} the {}?", "which object is {} the {}?")).format(SAID[side], thing)
            likely = tuple(label for label in CLASSES if label != thing)
            fact = ("side", side, other, thing)
            yield self._open("query.rel", words, other, "object", CLASSES, likely, fact)

    def query_global(self) -> Iterator[_Node]:
        words = self.pick(("what is the scenery?", "which scenery is it?"))
        fact = ("scenery", self.scene.scenery)
        yield self._open("query.global", words, self.scene.scenery, "scenery", SCENERIES, SCENERIES, fact)

    def verify_obj(self) -> Iterator[_Node]:
        colors = {thing.label: thing.color for thing in self.scene.things}
        while True:
            yes = self._yes()
            color, label = self.present() if yes else self.absent()
            words = self.pick(("is there a {}?", "can you see a {}?")).format(named(color, label))
            if label not in colors:
                known: Fact = ("absent", label)
            else:
                known = ("color", label, colors[label]) if color else ("there", label)
            # That there is no red kite tells neither that there is a kite nor that there is none.
            tells = _closed(known) if yes or color is None else frozenset()
            yield self._binary("verify.obj", words, yes, (_closed(known),), tells)

    def verify_attr(self) -> Iterator[_Node]:
        for thing in self.shuffled(classes_of(self.scene)):
            yes = self._yes()
            color = (
                thing.color if yes else self.pick([c for c in seen_colors(thing.label) if c != thing.color])
            )
            words = self.pick(("{be} the {name} {0}?", "{be} the color of the {name} {0}?"))
            if words.startswith("{be} the color"):
                words = words.replace("{be}", "is")
            fact = ("color", thing.label, thing.color)
            tells = _closed(fact) if yes else _closed(("there", thing.label))
            yield self._binary(
                "verify.attr", self._said(words, thing).format(color), yes, (_closed(fact),), tells
            )

    def verify_rel(self) -> Iterator[_Node]:
        for side, one, other in self.shuffled(relations(self.scene)):
            yes = self._yes()
            said = SAID[side if yes else self.wrong_side(side)]
            fact = _closed(("side", side, one, other))
            tells = fact if yes else _closed(("there", one), ("there", other))
            yield self._binary("verify.rel", f"is the {one} {said} the {other}?", yes, (fact,), tells)

    def verify_global(self) -> Iterator[_Node]:
        yes, here = self._yes(), self.scene.scenery
        asked = here if yes else self.pick([scenery for scenery in SCENERIES if scenery != here])
        fact = _closed(("scenery", here))
        yield self._binary(
            "verify.global", f"is the scenery {asked}?", yes, (fact,), fact if yes else frozenset()
        )

    def choose_attr(self) -> Iterator[_Node]:
        for thing in self.shuffled(classes_of(self.scene)):
            wrong = self.pick([color for color in seen_colors(thing.label) if color != thing.color])
            fact = ("color", thing.label, thing.color)
            yield self._choice(
                "choose.attr",
                self._said("{be} the {name} {{}} or {{}}?", thing),
                thing.color,
                wrong,
                "color",
                fact,
            )

    def choose_cat(self) -> Iterator[_Node]:
        for thing in self.shuffled(self.scene.things):
            wrong = self.pick([label for label in CLASSES if label != thing.label])
            words = f"is the object at the {place_of(thing)} a {{}} or a {{}}?"
            fact = ("at", thing.label, place_of(thing))
            yield self._choice("choose.cat", words, thing.label, wrong, "object", fact)

    def choose_rel(self) -> Iterator[_Node]:
        for side, one, other in self.shuffled(relations(self.scene)):
            said = self.pick(_SIDEWAYS if side in ("left", "right") else _UPWARDS)
            words = f"is the {one} {said} the {other}?"
            sides = (side, SIDES[side])
            yield self._open("choose.rel", words, side, "side", sides, sides, ("side", side, one, other))

    def choose_global(self) -> Iterator[_Node]:
        here = self.scene.scenery
        wrong = self.pick([scenery for scenery in SCENERIES if scenery != here])
        yield self._choice(
            "choose.global", "is the scenery {} or {}?", here, wrong, "scenery", ("scenery", here)
        )

    def logical_obj(self) -> Iterator[_Node]:
        """Of two classes: "and" is no where one of them is missing, "or" is yes where one is there."""
        there = [thing.label for thing in classes_of(self.scene)]
        absent = [label for label in CLASSES if label not in there]
        while True:
            # "and" is not asked where its answer could only be no: to ask would tell it.
            both, yes = self.rng.random() < 0.5 and len(there) > 1, self._yes()
            if both == yes:
                pair = self.shuffled(there)[:2] if yes else self.shuffled(absent)[:2]
            else:
                pair = self.shuffled((self.pick(there), self.pick(absent)))
            facts = [("there" if label in there else "absent", label) for label in pair]
            # One thing there decides "or", one that is not decides "and".
            deciding = [fact for fact in facts if (fact[0] == "there") != both]
            needs = tuple(_closed(fact) for fact in deciding) or (_closed(*facts),)
            tells = frozenset() if deciding else _closed(*facts)
            words = f"is there a {pair[0]} {'and' if both else 'or'} a {pair[1]}?"
            yield self._binary("logical.obj", words, yes, needs, tells)

    def compare_attr(self) -> Iterator[_Node]:
        things = self.shuffled(classes_of(self.scene))
        for number, one in enumerate(things):
            for other in things[number + 1 :]:
                same, chance = one.color == other.color, same_color(one.label, other.label)
                names = name_of(self.scene, one), name_of(self.scene, other)
                facts = [("color", thing.label, thing.color) for thing in (one, other)]
                yield _Node(
                    "compare.attr",
                    "are the {} and the {} the same color?".format(*names),
                    YES_NO[not same],
                    None,
                    YES_NO,
                    YES_NO,
                    (_closed(*facts),),
                    _closed(("there", one.label), ("there", other.label)),
                    same or bool(self.rng.random() < chance / (1 - chance)),
                )

    def _yes(self) -> bool:
        return bool(self.rng.random() < _YES)

    def _said(self, words: str, thing: Thing) -> str:
        be = "is" if thing in singles(self.scene) else "are"
        return words.replace("{be}", be).replace("{name}", name_of(self.scene, thing)).replace("{{}}", "{}")

    def _open(
        self,
        kind: str,
        words: str,
        answer: str,
        group: str,
        valid: tuple[str, ...],
        plausible: tuple[str, ...],
        fact: Fact,
    ) -> _Node:
        return _Node(kind, words, answer, group, valid, plausible, (_closed(fact),), _closed(fact))

    def _choice(self, kind: str, words: str, answer: str, wrong: str, group: str, fact: Fact) -> _Node:
        pair = self.shuffled((answer, wrong))
        return self._open(kind, words.format(*pair), answer, group, tuple(pair), tuple(pair), fact)

    def _binary(
        self, kind: str, words: str, yes: bool, needs: tuple[frozenset[Fact], ...], tells: frozenset[Fact]
    ) -> _Node:
        balanced = not yes or bool(self.rng.random() < (1 - _YES) / _YES)
        return _Node(kind, words, YES_NO[not yes], None, YES_NO, YES_NO, needs, tells, balanced)
