"""The things of Toybox and how a scene is composed of them.

A scene is a scenery (sea, field, ...) with a main object (or two or three equal ones), mostly a
second and sometimes a third object. Objects stand in slots, three columns by two rows, so that a
caption can say where something is and a painter can be right about it. The main object is the
largest one; captions name it first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.features.ranges import check_at_least, check_shares

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "yellow": (247, 208, 32),
    "green": (40, 160, 60),
    "blue": (40, 84, 214),
    "purple": (146, 52, 178),
    "white": (246, 246, 246),
}

# What an object does in the upper row (in the air) and in the lower row (on the ground), with
# paraphrases; the singular form, the plural drops the ending (see grammar.py).
VERBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ball": (("floats", "hovers"), ("rests", "lies")),
    "boat": (("floats", "hovers"), ("rests", "waits")),
    "car": (("flies", "hovers"), ("stands", "waits")),
    "fish": (("flies", "floats"), ("lies", "rests")),
    "house": (("floats", "hovers"), ("stands", "sits")),
    "kite": (("flies", "floats"), ("lies", "rests")),
    "star": (("hangs", "shines"), ("lies", "sits")),
    "tree": (("hangs", "floats"), ("stands", "grows")),
}
CLASSES = tuple(VERBS)
SCENERIES = ("desert", "field", "night", "sea", "snow")

# Colour and class pairs that no picture outside the split "compositional" shows.
UNSEEN = (("red", "boat"), ("blue", "star"), ("yellow", "house"), ("purple", "fish"), ("green", "ball"))

LARGE = (25.5, 26.5)
SMALL = (20.0, 21.0)


@dataclass(frozen=True)
class Thing:
    """One object of a scene: what it is, its slot, its exact box in pixels of a 64-pixel picture."""

    label: str
    color: str
    row: int
    column: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A scene before it is drawn or described.

    `main` holds one to three equal things, `others` up to two more in the order of their size;
    `horizon` and `light` vary the scenery (pixels from the top, factor around 1).
    """

    scenery: str
    main: tuple[Thing, ...]
    others: tuple[Thing, ...]
    large: bool
    horizon: float
    light: float

    @property
    def things(self) -> tuple[Thing, ...]:
        """Main object first, then the others by size, then the main object's equals."""
        return (self.main[0], *self.others, *self.main[1:])


@dataclass(frozen=True)
class SceneConfig:
    """How often a scene has what (shares between 0 and 1) and how far objects stray (pixels)."""

    two: float
    three: float
    large: float
    second: float
    third: float
    jitter: float

    def __post_init__(self) -> None:
        check_shares(self, "two", "three", "large", "second", "third")
        check_at_least(self, 0, "jitter")
        if self.two + self.three > 1:
            raise ValueError(
                f"two and three are shares of the same scenes, and together {self.two + self.three:g}: more than all"
            )


def compose(rng: np.random.Generator, config: SceneConfig, unseen: bool) -> Scene:
    """Draw a scene at random; `unseen` makes the main object one of the pairs kept from training."""
    color, label = _pair(rng, unseen, taken=())
    number = int(rng.choice(3, p=(1 - config.two - config.three, config.two, config.three))) + 1
    large = bool(number == 1 and rng.random() < config.large)
    row = int(rng.integers(2))
    # Two equal things stand left and right, three fill the row: a caption's "two red kites at the
    # top" then leaves a painter nothing to guess.
    columns = {1: (int(rng.integers(3)),), 2: (0, 2), 3: (0, 1, 2)}[number]
    low, high = LARGE if large else SMALL if number == 1 else (18.0, 18.8)
    size = float(rng.uniform(low, high))
    main = tuple(
        Thing(label, color, row, column, _box(rng, row, column, size, config.jitter)) for column in columns
    )

    others: list[Thing] = []
    free = [(r, c) for r in range(2) for c in range(3) if not (r == row and c in columns)]
    shrink = (17.5 if large else 15.5, 14.5 if large else 13.0)
    for chance, other_size in zip((config.second, config.third), shrink, strict=True):
        if rng.random() >= chance:
            break
        taken = (label, *(thing.label for thing in others))
        other_color, other_label = _pair(rng, False, taken)
        place = free.pop(int(rng.integers(len(free))))
        box = _box(rng, *place, other_size + float(rng.uniform(-0.4, 0.4)), config.jitter)
        others.append(Thing(other_label, other_color, *place, _clear(box, place, main, others)))
    return Scene(
        scenery=SCENERIES[int(rng.integers(len(SCENERIES)))],
        main=main,
        others=tuple(others),
        large=large,
        horizon=float(rng.uniform(30.5, 33.5)),
        light=float(rng.uniform(0.97, 1.03)),
    )


def _pair(rng: np.random.Generator, unseen: bool, taken: tuple[str, ...]) -> tuple[str, str]:
    if unseen:
        return UNSEEN[int(rng.integers(len(UNSEEN)))]
    colors = tuple(COLORS)
    while True:
        pair = colors[int(rng.integers(len(colors)))], CLASSES[int(rng.integers(len(CLASSES)))]
        if pair not in UNSEEN and pair[1] not in taken:
            return pair


def _box(
    rng: np.random.Generator, row: int, column: int, size: float, jitter: float
) -> tuple[float, float, float, float]:
    half = size / 2
    x = (half + 1.5, 32.0, 62.5 - half)[column] + rng.uniform(-jitter, jitter)
    y = (16.0, 47.5)[row] + rng.uniform(-jitter, jitter)
    x, y = np.clip((x, y), half, 64 - half)
    return float(x - half), float(y - half), float(x + half), float(y + half)


def _clear(
    box: tuple[float, float, float, float],
    place: tuple[int, int],
    main: tuple[Thing, ...],
    others: list[Thing],
) -> tuple[float, float, float, float]:
    """Move a smaller object out of its row's larger ones, so that none is hidden."""
    x0, y0, x1, y1 = box
    for thing in (*main, *others):
        if thing.row != place[0]:
            continue
        if thing.column < place[1] and x0 < thing.box[2]:
            shift = min(thing.box[2] - x0, 64 - x1)
        elif thing.column > place[1] and x1 > thing.box[0]:
            shift = max(thing.box[0] - x1, -x0)
        else:
            continue
        x0, x1 = x0 + shift, x1 + shift
    return x0, y0, x1, y1
