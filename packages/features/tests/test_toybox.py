"""Toybox: exact, deterministic, describable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.features.datasets.toybox import (
    CLASSES,
    COLORS,
    SCENERIES,
    UNSEEN,
    GrammarConfig,
    SceneConfig,
    ToyboxConfig,
    build_toybox,
)
from diptych.features.datasets.toybox.drawing import draw
from diptych.features.datasets.toybox.world import Scene, Thing

SCENES = SceneConfig(two=0.13, three=0.07, large=0.7, second=0.65, third=0.15, jitter=1.5)
GRAMMAR = GrammarConfig(usual=0.75, where=0.9, size=0.4, scenery=0.6, second=0.85, third=0.4)


def toybox(folder: Path, *, train: int = 300, seed: int = 0, grammar: GrammarConfig = GRAMMAR) -> list[dict]:
    config = ToyboxConfig(train, 20, 20, 40, 10, 64, SCENES, grammar)
    return list(build_toybox(config, seed, folder))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return toybox(tmp_path_factory.mktemp("toybox"))


def test_the_same_seed_gives_the_same_world_and_another_one_does_not(
    rows: list[dict], tmp_path: Path
) -> None:
    assert toybox(tmp_path / "again") == rows
    other = toybox(tmp_path / "other", seed=1)
    assert [row["sha256"] for row in other] != [row["sha256"] for row in rows]


def test_another_grammar_leaves_pictures_and_boxes_alone(rows: list[dict], tmp_path: Path) -> None:
    terse = GrammarConfig(usual=0.75, where=0.2, size=0.0, scenery=0.2, second=0.1, third=0.0)
    changed = toybox(tmp_path, grammar=terse)
    assert [r["captions"] for r in changed] != [r["captions"] for r in rows]
    assert [{**r, "captions": None} for r in changed] == [{**r, "captions": None} for r in rows]


def test_captions_have_8_to_16_words_and_a_full_stop(rows: list[dict]) -> None:
    captions = [caption for row in rows for caption in row["captions"]]
    lengths = [len(caption.split()) - 1 for caption in captions]
    assert all(caption.endswith(" .") and caption.count(".") == 1 for caption in captions)
    assert min(lengths) >= 8 and max(lengths) <= 16
    assert 60 <= len({word for caption in captions for word in caption.split()}) <= 150
    assert all(len(row["captions"]) == 5 for row in rows)


def test_the_main_object_is_the_largest_and_named_first_with_its_colour(rows: list[dict]) -> None:
    for row in rows:
        main, *others = [o for o in row["objects"] if o["attributes"]]
        area = {
            o["label"]: (o["bbox"][2] - o["bbox"][0]) * (o["bbox"][3] - o["bbox"][1]) for o in (main, *others)
        }
        assert max(area, key=area.__getitem__) == main["label"]
        for caption in row["captions"]:
            words = [
                w if w == "fish" else w.rstrip("s")
                for w in caption.split()
                if w.rstrip("s") in CLASSES or w == "fish"
            ]
            assert words[0] == main["label"]
            assert f"{main['attributes'][0]} {main['label']}" in caption


def test_most_captions_say_where(rows: list[dict]) -> None:
    captions = [caption for row in rows for caption in row["captions"]]
    assert np.mean(["top" in c or "bottom" in c for c in captions]) > 0.85


@pytest.mark.parametrize("usual", (0.25, 0.75))
def test_a_share_of_paraphrases_is_the_usual_one(usual: float, tmp_path: Path) -> None:
    rows = toybox(tmp_path, grammar=replace(GRAMMAR, usual=usual))
    said = " ".join(caption for row in rows for caption in row["captions"])
    for one, another in (("with a", "and a"), ("in the desert", "over the sand"), (" above ", " over a ")):
        counts = said.count(one), said.count(another)
        assert abs(counts[0] / sum(counts) - usual) < 0.12, (one, another, counts)


def test_unseen_pairs_are_main_objects_of_the_compositional_split_only(rows: list[dict]) -> None:
    for row in rows:
        pairs = [(o["attributes"][0], o["label"]) for o in row["objects"] if o["attributes"]]
        if row["split"] == "compositional":
            assert pairs[0] in UNSEEN
        else:
            assert not set(pairs) & set(UNSEEN)
    seen = {
        (o["attributes"][0], o["label"])
        for r in rows
        if r["split"] == "train"
        for o in r["objects"]
        if o["attributes"]
    }
    assert len(seen) > 0.9 * (len(COLORS) * len(CLASSES) - len(UNSEEN))


def test_counts_and_boxes_are_exact(rows: list[dict]) -> None:
    numbers = set()
    for row in rows:
        main = row["objects"][0]
        equals = [
            o for o in row["objects"] if (o["label"], o["attributes"]) == (main["label"], main["attributes"])
        ]
        number = {"two": 2, "three": 3}.get(
            next((w for w in row["captions"][0].split() if w in ("two", "three")), ""), 1
        )
        assert number == len(equals)
        numbers.add(number)
        assert row["objects"][-1]["label"] in SCENERIES
        for entry in row["objects"]:
            x0, y0, x1, y1 = entry["bbox"]
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
    assert numbers == {1, 2, 3}


@pytest.mark.parametrize("label", CLASSES)
def test_every_class_is_drawn_in_its_colour_inside_its_box(label: str) -> None:
    empty = Scene("sea", (), (), True, 32.0, 1.0)
    thing = Thing(label, "purple", 0, 1, (20.0, 10.0, 44.0, 34.0))
    scene = Scene("sea", (thing,), (), True, 32.0, 1.0)
    drawn, background = (np.asarray(draw(s, 64)).astype(int) for s in (scene, empty))
    changed = np.abs(drawn - background).sum(axis=2) > 24
    assert changed[10:34, 20:44].mean() > 0.3
    changed[9:35, 19:45] = False
    assert not changed.any()
    purple = np.abs(drawn[10:34, 20:44] - np.array(COLORS["purple"])).sum(axis=2) < 30
    assert purple.mean() > 0.15


def test_files_hold_what_the_rows_say(tmp_path: Path) -> None:
    row = toybox(tmp_path, train=1)[0]
    with Image.open(tmp_path / row["path"]) as picture:
        assert picture.size == (row["width"], row["height"]) == (64, 64)
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            SCENES,
            {"two": 0.7, "three": 0.5},
            "two and three are shares of the same scenes, and together 1.2: more than all",
        ),
        (SCENES, {"two": -0.1}, "two is a share between 0 and 1, is -0.1"),
        (SCENES, {"second": float("nan")}, "second is a share between 0 and 1, is nan"),
        (SCENES, {"jitter": -1.0}, "jitter must be at least 0, is -1.0"),
        (GRAMMAR, {"usual": 1.5}, "usual is a share between 0 and 1, is 1.5"),
        (ToyboxConfig(1, 0, 0, 0, 0, 64, SCENES, GRAMMAR), {"val": -1}, "val must be at least 0, is -1"),
        (
            ToyboxConfig(1, 0, 0, 0, 0, 64, SCENES, GRAMMAR),
            {"image_size": 0},
            "image_size must be at least 1, is 0",
        ),
    ],
)
def test_what_cannot_be_drawn_names_the_parameter(section: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(section, **change)
