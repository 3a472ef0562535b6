"""Toybox's word lists are what Toybox draws and says: `diptych.eval` cannot ask `diptych.features`."""

from __future__ import annotations

import numpy as np

from diptych.eval.words import read_words
from diptych.features.datasets.toybox.grammar import GrammarConfig, describe
from diptych.features.datasets.toybox.world import CLASSES, COLORS, VERBS, SceneConfig, compose

WORDS = read_words("toybox")


def test_lists_are_those_of_the_world() -> None:
    assert {row[0] for row in WORDS.nouns} == {*CLASSES}
    assert {row[0] for row in WORDS.colors} == {*COLORS}
    assert {row[0] for row in WORDS.verbs} == {
        verb for rows in VERBS.values() for verbs in rows for verb in verbs
    }


def test_captions_say_the_forms_of_the_lists() -> None:
    config = GrammarConfig(usual=0.75, where=0.9, size=0.3, scenery=0.6, second=0.9, third=0.4)
    scenes = SceneConfig(two=0.3, three=0.2, large=0.7, second=0.65, third=0.15, jitter=1.0)
    generator = np.random.default_rng(0)
    said: set[str] = set()
    for _ in range(800):
        said |= {*describe(compose(generator, scenes, unseen=False), generator, config).split()}
    listed = {
        form
        for rows in (WORDS.nouns, WORDS.verbs, WORDS.colors, WORDS.numbers)
        for row in rows
        for form in row
    }
    assert listed <= said, f"never said: {sorted(listed - said)}"
