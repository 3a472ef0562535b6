"""How likely Toybox's scenes have what is asked for: from the chances that compose them, not from counting pictures.

What is rare is asked about whenever it occurs, and what is common so seldom that the answers are about equally
frequent; a picture's questions then need no other picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from diptych.features.datasets.toybox.world import COLORS, UNSEEN, SceneConfig


def number_of_equals(scenes: SceneConfig) -> dict[int, float]:
    """The chance that the main object is one, two or three equal things."""
    return {1: 1 - scenes.two - scenes.three, 2: scenes.two, 3: scenes.three}


def number_of_things(scenes: SceneConfig) -> dict[int, float]:
    """The chance that a scene has one to five things in all."""
    others = {
        0: 1 - scenes.second,
        1: scenes.second * (1 - scenes.third),
        2: scenes.second * scenes.third,
    }
    found = dict.fromkeys(range(1, 6), 0.0)
    for equals, chance in number_of_equals(scenes).items():
        for more, other_chance in others.items():
            found[equals + more] += chance * other_chance
    return found


def acceptance(chances: Mapping[int, float]) -> dict[int, float]:
    """With which chance to ask where the answer is a number, so that none of the answers stands out.

    The third most frequent answer, or the rarest where there are fewer, is always asked for, and those that are more
    frequent as often as it is.
    """
    frequent = sorted((chance for chance in chances.values() if chance > 0), reverse=True)
    level = frequent[: min(3, len(frequent))][-1]
    return {value: min(1.0, level / chance) if chance > 0 else 0.0 for value, chance in chances.items()}


@cache
def seen_colors(label: str) -> tuple[str, ...]:
    """The colors in which pictures of all splits but "compositional" show a class."""
    return tuple(color for color in COLORS if (color, label) not in UNSEEN)


@cache
def same_color(one: str, other: str) -> float:
    """The chance that two things of these classes have one color."""
    mine, theirs = set(seen_colors(one)), set(seen_colors(other))
    return len(mine & theirs) / (len(mine) * len(theirs))
