"""Questions about Toybox scenes in VQA's manner: nine kinds, ten answers each, and nothing to be guessed from the words.

Every question has one answer that the picture gives. Half of the questions that are answered by yes or no are
answered by no, what is rare is asked about whenever it occurs, and no other picture decides what is asked of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.features.datasets.toybox.annotators import annotate
from diptych.features.datasets.toybox.asking import TRIES, YES_NO, SceneAsker, named
from diptych.features.datasets.toybox.chances import (
    acceptance,
    number_of_equals,
    number_of_things,
    same_color,
)
from diptych.features.datasets.toybox.facts import (
    PLACES,
    SAID,
    alone_on_its_side,
    classes_of,
    name_of,
    place_of,
    relations,
    singles,
)
from diptych.features.datasets.toybox.grammar import plural
from diptych.features.datasets.toybox.world import CLASSES, COLORS, SCENERIES, Scene, SceneConfig, Thing
from diptych.features.ranges import check_at_least, check_shares

KINDS = ("object", "color", "count", "count_all", "exists", "place", "scenery", "relation", "same_color")

WORDINGS: dict[str, tuple[str, ...]] = {
    "object": ("what is at the {0}?", "what is in the {0}?", "which object is at the {0}?"),
    "color": ("what color is the {0}?", "what is the color of the {0}?", "which color is the {0}?"),
    "colors": ("what color are the {0}?", "what is the color of the {0}?", "which color are the {0}?"),
    "count": ("how many {0} are there?", "how many {0} are in the picture?", "how many {0} can you see?"),
    "exists": ("is there a {0}?", "is there a {0} in the picture?", "can you see a {0}?"),
    "place": (
        "where is the {0}?",
        "where in the picture is the {0}?",
        "in which part of the picture is the {0}?",
    ),
    "scenery": ("what is the scenery?", "where was this taken?", "what is in the background?"),
    "relation": ("what is {0} the {1}?", "which object is {0} the {1}?"),
    "is_relation": ("is the {1} {0} the {2}?", "is there a {1} {0} the {2}?"),
    "same_color": (
        "are the {0} and the {1} the same color?",
        "do the {0} and the {1} have the same color?",
    ),
}
ALL = ("objects", "things")


@dataclass(frozen=True)
class QuestionsConfig:
    """What is asked about Toybox, and how people answer.

    splits: whose pictures are asked about. per_picture: questions in VQA's manner a picture; graph_per_picture: in
    GQA's. statements_per_picture: statements in NLVR2's manner, in the mean, counted with each pair of pictures; 0
    makes none. answers: people who answer each of VQA's. otherwise, wrong: shares of their answers that are right in
    another word (where there is one), and that are not right. colored: share of the questions for a kind of thing
    that name its color too.
    """

    splits: tuple[str, ...]
    per_picture: int
    graph_per_picture: int
    statements_per_picture: float
    answers: int
    otherwise: float
    wrong: float
    colored: float

    def __post_init__(self) -> None:
        check_at_least(self, 0, "per_picture", "graph_per_picture", "statements_per_picture")
        check_at_least(self, 1, "answers")
        check_shares(self, "otherwise", "wrong", "colored")


@dataclass(frozen=True)
class Asked:
    """A question about one scene: its words, its true answer, and the answers that its kind has."""

    kind: str
    question: str
    truth: str
    possible: tuple[str, ...]


def ask(
    scene: Scene, rng: np.random.Generator, config: QuestionsConfig, scenes: SceneConfig
) -> list[dict[str, Any]]:
    """`config.per_picture` questions about a scene, in random order, no two in the same words; fewer only where that
    is more than there is to ask.

    scenes: the chances that composed the scene; what they make rare is asked about whenever it is there.
    Returns dictionaries of kind, question and answers (`config.answers` of them); ids are the caller's.
    """
    asked = _choose(_Asker(scene, rng, config.colored, scenes), config.per_picture, rng)
    return [
        {
            "kind": question.kind,
            "question": question.question,
            "answers": annotate(
                question.truth, question.possible, config.answers, config.otherwise, config.wrong, rng
            ),
        }
        for question in asked
    ]


def _choose(asker: _Asker, number: int, rng: np.random.Generator) -> list[Asked]:
    """What is rare first, then the other kinds in turn until there are `number`.

    Which of a picture's rare things are asked about is decided before, so that taking turns tells nothing of them.
    """
    chosen: dict[str, Asked] = {}
    for kind in (asker.count_all, asker.count, asker.scenery, asker.same_color, asker.relation):
        for rare in kind():
            chosen.setdefault(rare.question, rare)
    waiting = [kind() for kind in (asker.exists, asker.place, asker.object, asker.color)]
    while waiting and len(chosen) < number:
        for questions in list(waiting):
            new = next((question for question in questions if question.question not in chosen), None)
            if new is None:
                waiting.remove(questions)
            else:
                chosen[new.question] = new
    asked = list(chosen.values())[:number]
    return [asked[i] for i in rng.permutation(len(asked))]


@dataclass(frozen=True)
class _Asker(SceneAsker):
    """Asks about one scene, a method a kind; each yields its questions in random order."""

    scenes: SceneConfig

    def object(self) -> Iterator[Asked]:
        for thing, wording in self._twice(self.scene.things, "object"):
            place = wording.format(place_of(thing))
            yield Asked("object", place, thing.label, CLASSES)

    def color(self) -> Iterator[Asked]:
        for thing in self.shuffled(classes_of(self.scene)):
            name = name_of(self.scene, thing)
            for wording in self.shuffled(WORDINGS["color" if thing in singles(self.scene) else "colors"])[:2]:
                yield Asked("color", wording.format(name), thing.color, tuple(COLORS))

    def place(self) -> Iterator[Asked]:
        for thing, wording in self._twice(singles(self.scene), "place"):
            yield Asked("place", wording.format(thing.label), place_of(thing), PLACES)

    def scenery(self) -> Iterator[Asked]:
        yield Asked("scenery", self.shuffled(WORDINGS["scenery"])[0], self.scene.scenery, SCENERIES)

    def exists(self) -> Iterator[Asked]:
        """Of things that are there and things that are not, by a coin, until the words for one of both run out."""
        said: set[str] = set()
        while True:
            there = self.rng.random() < 0.5
            for _ in range(TRIES):
                name = named(*(self.present() if there else self.absent()))
                question = self.shuffled(WORDINGS["exists"])[0].format(name)
                if question not in said:
                    break
            else:
                return
            said.add(question)
            yield Asked("exists", question, YES_NO[not there], YES_NO)

    def count(self) -> Iterator[Asked]:
        """Of each answer from 0 to 3 about as many; a picture that is asked at all is asked in several words."""
        chances = number_of_equals(self.scenes)
        accepted = acceptance(chances)
        level = min(chance * accepted[number] for number, chance in chances.items() if chance > 0)
        main = self.scene.main
        subjects: list[tuple[str, str, int]] = []
        if len(main) > 1 and self.rng.random() < accepted[len(main)]:
            subjects.append((main[0].color, main[0].label, len(main)))
        one = singles(self.scene)
        if one and self.rng.random() < level / (chances[1] + (1 - chances[1]) * self.scenes.second):
            thing = self.pick(one)
            subjects.append((thing.color, thing.label, 1))
        if self.rng.random() < level:
            subjects.append((*self.absent_pair(class_too=True), 0))
            color, label = self.absent_pair(class_too=False)
            for wording in self.shuffled(WORDINGS["count"])[:2]:
                yield self._counted(wording, f"{color} {plural(label)}", 0)
        for color, label, number in subjects:
            for wording in self.shuffled(WORDINGS["count"])[:2]:
                yield self._counted(wording, plural(label), number)
                if number:
                    yield self._counted(wording, f"{color} {plural(label)}", number)

    def count_all(self) -> Iterator[Asked]:
        number = len(self.scene.things)
        if self.rng.random() < acceptance(number_of_things(self.scenes))[number]:
            for wording in self.shuffled(WORDINGS["count"])[:2]:
                name = self.pick(ALL)
                yield Asked("count_all", wording.format(name), str(number), ("1", "2", "3", "4", "5"))

    def relation(self) -> Iterator[Asked]:
        """What is beside a thing, and whether one is beside another: two of each where there are any."""
        found = relations(self.scene)
        for side, other, thing in self.shuffled(alone_on_its_side(self.scene))[:2]:
            wording = self.shuffled(WORDINGS["relation"])[0]
            yield Asked("relation", wording.format(SAID[side], thing), other, CLASSES)
        for side, other, thing in self.shuffled(found)[:2]:
            asked, truth = side, "yes"
            if self.rng.random() < 0.5:
                truth = "no"
                asked = self.wrong_side(side)
            wording = self.shuffled(WORDINGS["is_relation"])[0]
            yield Asked("relation", wording.format(SAID[asked], other, thing), truth, YES_NO)

    def same_color(self) -> Iterator[Asked]:
        """About as many yes as no, also for each pair of classes by itself; one pair, in four ways."""
        things = self.shuffled(classes_of(self.scene))
        for number, one in enumerate(things):
            for other in things[number + 1 :]:
                same, chance = one.color == other.color, same_color(one.label, other.label)
                if not same and self.rng.random() >= chance / (1 - chance):
                    continue
                for left, right in ((one, other), (other, one)):
                    names = (name_of(self.scene, left), name_of(self.scene, right))
                    for wording in self.shuffled(WORDINGS["same_color"])[:2]:
                        yield Asked("same_color", wording.format(*names), YES_NO[not same], YES_NO)
                return

    def _counted(self, wording: str, name: str, number: int) -> Asked:
        return Asked("count", wording.format(name), str(number), ("0", "1", "2", "3"))

    def _twice(self, things: tuple[Thing, ...], kind: str) -> Iterator[tuple[Thing, str]]:
        """Every thing in two wordings: all in one before any in the second."""
        order = [(thing, self.shuffled(WORDINGS[kind])[:2]) for thing in self.shuffled(things)]
        for turn in range(2):
            for thing, wordings in order:
                yield thing, wordings[turn]
