"""The report's verdicts on words, held against captions that are true because the grammar wrote them."""

from __future__ import annotations

import numpy as np

from diptych.eval.report.marks import mark_words
from diptych.features.datasets.toybox import _objects
from diptych.features.datasets.toybox.grammar import GrammarConfig, describe
from diptych.features.datasets.toybox.world import CLASSES, COLORS, SCENERIES, SceneConfig, compose

SCENES = SceneConfig(two=0.2, three=0.2, large=0.7, second=0.8, third=0.4, jitter=1.0)
GRAMMAR = GrammarConfig(usual=0.75, where=0.9, size=0.4, scenery=0.6, second=0.9, third=0.5)
LABELS, SIZE = {*CLASSES, *SCENERIES}, (64, 64)


def test_no_word_of_a_true_caption_is_wrong_and_another_scenes_words_are() -> None:
    generator = np.random.default_rng(0)
    scenes = [compose(generator, SCENES, unseen=False) for _ in range(300)]
    objects = [_objects(scene, SIZE[0]) for scene in scenes]
    judged, foreign = [], []
    for number, scene in enumerate(scenes):
        caption = describe(scene, generator, GRAMMAR)
        judged += mark_words(caption, objects[number], LABELS, COLORS, SIZE)
        foreign += mark_words(caption, objects[number - 1], LABELS, COLORS, SIZE)
    assert [mark for mark in judged if mark.right is False] == []
    for kind in ("object", "color", "count", "place"):
        assert sum(mark.kind == kind for mark in judged) > 50
        assert sum(mark.kind == kind and mark.right is False for mark in foreign) > 5
