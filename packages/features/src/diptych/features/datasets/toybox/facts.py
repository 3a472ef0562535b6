"""What a picture of a scene tells: where things are, which there is one of, and what is beside what."""

from __future__ import annotations

from collections.abc import Callable

from diptych.features.datasets.toybox.grammar import plural
from diptych.features.datasets.toybox.world import Scene, Thing

ROWS, COLUMNS = ("top", "bottom"), ("left", "middle", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
# The side on which one thing is of another, its opposite, and how it is said.
SIDES = {"left": "right", "right": "left", "above": "below", "below": "above"}
SAID = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def classes_of(scene: Scene) -> tuple[Thing, ...]:
    """One thing of every class in the scene; a class has one color in it."""
    return (scene.main[0], *scene.others)


def place_of(thing: Thing) -> str:
    """The row and column of a thing, as "top left"."""
    return PLACES[len(COLUMNS) * thing.row + thing.column]


def name_of(scene: Scene, thing: Thing) -> str:
    """The class of a thing in the plural where the scene has several."""
    return thing.label if thing in singles(scene) else plural(thing.label)


def singles(scene: Scene) -> tuple[Thing, ...]:
    """The things of whose class there is no second one."""
    return (*(scene.main if len(scene.main) == 1 else ()), *scene.others)


def relations(scene: Scene) -> list[tuple[str, str, str]]:
    """(side, label, other label): what is beside, above or below what, of single things in one row or column."""
    found = []
    for one in singles(scene):
        for other in singles(scene):
            if one is not other and one.row == other.row:
                found.append(("left" if one.column < other.column else "right", one.label, other.label))
            elif one is not other and one.column == other.column:
                found.append(("above" if one.row < other.row else "below", one.label, other.label))
    return found


def alone_on_its_side(scene: Scene) -> list[tuple[str, str, str]]:
    """Those relations (side, label, other label) in which nothing of another class is anywhere on that side."""
    on_side: dict[str, Callable[[Thing, Thing], bool]] = {
        "left": lambda thing, of: thing.column < of.column,
        "right": lambda thing, of: thing.column > of.column,
        "above": lambda thing, of: thing.row < of.row,
        "below": lambda thing, of: thing.row > of.row,
    }
    found = []
    for of in singles(scene):
        for side, is_there in on_side.items():
            things = [thing for thing in scene.things if is_there(thing, of)]
            in_line = [t for t in things if t.row == of.row or t.column == of.column]
            if in_line and len({thing.label for thing in things}) == 1:
                found.append((side, in_line[0].label, of.label))
    return found
