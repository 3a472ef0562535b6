"""What all who ask about Toybox share: to choose at random, and to name what is there and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.features.datasets.toybox.chances import seen_colors
from diptych.features.datasets.toybox.facts import SIDES, classes_of
from diptych.features.datasets.toybox.world import CLASSES, Scene

YES_NO = ("yes", "no")
TRIES = 30  # to find words in which a picture was not asked before


@dataclass(frozen=True)
class SceneAsker:
    """One scene, the chance that asks about it, and `colored`, the share of names that have the color too."""

    scene: Scene
    rng: np.random.Generator
    colored: float

    def present(self) -> tuple[str | None, str]:
        """Color, or null, and class of what is there."""
        thing = self.pick(classes_of(self.scene))
        return (thing.color if self.rng.random() < self.colored else None), thing.label

    def absent(self) -> tuple[str | None, str]:
        """Color, or null, and class of what is not there."""
        if self.rng.random() >= self.colored:
            return None, self.absent_pair(class_too=True)[1]
        return self.absent_pair(class_too=self.rng.random() < 0.5)

    def absent_pair(self, class_too: bool) -> tuple[str, str]:
        """A color and a class that no thing has: a class that is not there, or one that is in another color.

        Of pairs that training shows; whoever asked for others would give the answer away by asking.
        """
        there = {thing.label: thing.color for thing in self.scene.things}
        if class_too:
            label = self.pick([label for label in CLASSES if label not in there])
        else:
            label = self.pick(list(there))
        return self.pick([color for color in seen_colors(label) if color != there.get(label)]), label

    def wrong_side(self, side: str) -> str:
        """The opposite of a side, or one crosswise to it."""
        if self.rng.random() < 0.5:
            return SIDES[side]
        return self.pick([other for other in SIDES if other not in (side, SIDES[side])])

    def shuffled(self, values: Any) -> list[Any]:
        return [values[i] for i in self.rng.permutation(len(values))]

    def pick(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]


def named(color: str | None, label: str) -> str:
    """A kind of thing in words: "kite", or "red kite"."""
    return f"{color} {label}" if color else label
