"""What Toybox asks: true of the picture, answered by people, and not to be guessed from the words."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asked_toybox import ASKED, CONFIG, GRAMMAR, SCENES

from diptych.features.datasets.toybox import (
    CLASSES,
    COLORS,
    UNSEEN,
    build_questions,
    build_toybox,
)
from diptych.features.datasets.toybox.annotators import OTHERWISE
from diptych.features.datasets.toybox.facts import SIDES
from diptych.features.datasets.toybox.questions import KINDS, ask
from diptych.features.datasets.toybox.world import Scene, Thing
from diptych.features.errors import UserError

USUAL = {other: usual for usual, others in OTHERWISE.items() for other in others}


def soft(answer: str, answers: Sequence[str]) -> float:
    """VQA's accuracy: min(n / 3, 1) of the others' answers, in the mean over who is left out."""
    rest = [sum(a == answer for j, a in enumerate(answers) if j != i) for i in range(len(answers))]
    return float(np.mean([min(n / 3, 1) for n in rest]))


def usual(answers: Sequence[str]) -> str:
    return Counter(USUAL.get(answer, answer) for answer in answers).most_common(1)[0][0]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(build_questions(CONFIG, 0))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What is known of the pictures, from the manifest's rows."""
    rows = build_toybox(CONFIG, 0, tmp_path_factory.mktemp("toybox"))
    return {row["image_id"]: row for row in rows}


def test_every_picture_of_the_splits_is_asked_so_many_questions_in_different_words(rows: list[dict]) -> None:
    by_picture = defaultdict(list)
    for row in rows:
        by_picture[row["image_ids"][0]].append(row["question"])
    assert len(by_picture) == 600 + 20 + 300 + 60
    assert all(len(asked) == len(set(asked)) == 12 for asked in by_picture.values())
    assert len({row["question_id"] for row in rows}) == len(rows)
    assert {row["kind"] for row in rows} == set(KINDS)


def test_the_answers_are_true_of_the_manifest_s_objects(rows: list[dict], pictures: dict[str, dict]) -> None:
    """Worked out from boxes, labels and attributes alone, as a person would from the picture."""
    checked: Counter[str] = Counter()
    for row in rows:
        *things, scenery = pictures[row["image_ids"][0]]["objects"]
        words = row["question"].rstrip("?").split()
        named = [w if w == "fish" else w.removesuffix("s") for w in words]
        labels = [w for w in named if w in CLASSES]
        colors = [w for w in words if w in COLORS]
        place = {t["label"]: _place(t["bbox"]) for t in things}
        color = {t["label"]: t["attributes"][0] for t in things}
        number = Counter(t["label"] for t in things)
        answer = usual(row["answers"])
        match row["kind"]:
            case "scenery":
                assert answer == scenery["label"]
            case "object":
                assert " ".join(words[-2:]) in {_place(t["bbox"]) for t in things if t["label"] == answer}
            case "color":
                assert answer == color[labels[0]]
            case "place":
                assert number[labels[0]] == 1 and answer == place[labels[0]]
            case "count":
                assert answer == str(number[labels[0]] if not colors or color.get(labels[0]) in colors else 0)
            case "count_all":
                assert answer == str(len(things))
            case "exists":
                there = labels[0] in color and (not colors or color[labels[0]] == colors[0])
                assert answer == ("yes" if there else "no")
            case "same_color":
                assert answer == ("yes" if color[labels[0]] == color[labels[1]] else "no")
            case "relation":
                side = next(word for word in words if word in SIDES)
                if len(labels) == 2:
                    assert answer == ("yes" if _is(side, place[labels[0]], place[labels[1]]) else "no")
                else:
                    equal = [_place(t["bbox"]) for t in things if t["label"] == answer]
                    assert any(_is(side, where, place[labels[0]]) for where in equal)
        checked[row["kind"]] += 1
    assert min(checked.values()) > 350, checked


def _place(box: Sequence[float]) -> str:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    row = "top" if y < 32 else "bottom"
    return f"{row} {'left' if x < 24 else 'right' if x > 40 else 'middle'}"


def _is(side: str, one: str, other: str) -> bool:
    (row, column), (other_row, other_column) = one.split(), other.split()
    columns = ("left", "middle", "right")
    if side in columns:
        difference = columns.index(column) - columns.index(other_column)
        return row == other_row and (difference < 0 if side == "left" else difference > 0)
    above = row == "top" and other_row == "bottom"
    below = row == "bottom" and other_row == "top"
    return column == other_column and (above if side == "above" else below)


def test_without_the_picture_the_best_answer_is_mostly_wrong(rows: list[dict]) -> None:
    """The most frequent answer to the same words in train, and where these are new, to the kind."""
    by_words, by_kind = defaultdict(Counter), defaultdict(Counter)
    for row in rows:
        if row["split"] == "train":
            by_words[row["question"]].update(row["answers"])
            by_kind[row["kind"]].update(row["answers"])
    blind = defaultdict(list)
    for row in rows:
        if row["split"] == "test":
            known = by_words.get(row["question"]) or by_kind[row["kind"]]
            blind[row["kind"]].append(soft(known.most_common(1)[0][0], row["answers"]))
    mean = {kind: np.mean(values) for kind, values in blind.items()}
    most = dict.fromkeys(KINDS, 0.35) | {"exists": 0.6, "same_color": 0.6, "relation": 0.45}
    assert all(mean[kind] < most[kind] for kind in KINDS), mean
    assert np.mean([value for values in blind.values() for value in values]) < 0.36


def test_half_of_what_is_answered_by_yes_or_no_is_no(rows: list[dict]) -> None:
    for kind in ("exists", "relation", "same_color"):
        answers = Counter(usual(row["answers"]) for row in rows if row["kind"] == kind)
        assert 0.44 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.56, (kind, answers)


def test_no_count_stands_out(rows: list[dict]) -> None:
    for kind, numbers in (("count", "0123"), ("count_all", "123")):
        answers = Counter(usual(row["answers"]) for row in rows if row["kind"] == kind)
        assert max(answers.values()) < 0.42 * answers.total(), (kind, answers)
        assert min(answers[number] for number in numbers) > 0.15 * answers.total(), (kind, answers)


def test_saying_the_truth_is_right_and_people_say_it_otherwise_or_err(rows: list[dict]) -> None:
    assert all(len(row["answers"]) == 10 for row in rows)
    assert np.mean([soft(usual(row["answers"]), row["answers"]) for row in rows]) > 0.99
    of_sea = Counter(a for row in rows if usual(row["answers"]) == "sea" for a in row["answers"])
    assert 0.07 < (of_sea["water"] + of_sea["ocean"]) / of_sea.total() < 0.13, of_sea
    wrong = np.mean([USUAL.get(a, a) != usual(row["answers"]) for row in rows for a in row["answers"]])
    assert 0.005 < wrong < 0.015


def test_nobody_errs_or_says_it_otherwise_where_the_shares_are_nothing() -> None:
    config = replace(CONFIG, questions=replace(ASKED, otherwise=0.0, wrong=0.0, answers=3))
    asked = [row["answers"] for row in build_questions(config, 0) if row["split"] == "val"]
    assert asked and all(len(answers) == 3 and len(set(answers)) == 1 for answers in asked)
    assert not USUAL.keys() & {answer for answers in asked for answer in answers}


def test_words_are_few(rows: list[dict]) -> None:
    assert len({word for row in rows for word in row["question"].rstrip("?").split()}) < 80
    assert len({answer for row in rows for answer in row["answers"]}) < 60


def test_a_question_depends_on_seed_split_and_number_alone(rows: list[dict]) -> None:
    small = replace(CONFIG, train=7, val=3)
    known = {row["question_id"]: row for row in rows}
    again = list(build_questions(small, 0))
    assert len(again) == (7 + 3 + 300 + 60) * 12 and all(known[row["question_id"]] == row for row in again)
    assert list(build_questions(replace(CONFIG, captions=replace(GRAMMAR, where=0.1)), 0)) == rows
    other = list(build_questions(small, 1))
    assert [row["question"] for row in other] != [row["question"] for row in again]


def test_other_questions_leave_pictures_and_captions_alone(tmp_path: Path) -> None:
    few = replace(CONFIG, train=5, val=2, test=2, compositional=2, ablation=2)
    others = replace(ASKED, per_picture=3, wrong=0.2)
    one, two, none = (
        list(build_toybox(replace(few, questions=asked), 0, tmp_path / str(number)))
        for number, asked in enumerate((ASKED, others, None))
    )
    assert one == two == none
    assert list(build_questions(replace(few, questions=None), 0)) == []


def test_unseen_pairs_are_asked_about_in_the_compositional_split_only(rows: list[dict]) -> None:
    pairs = {f"{color} {label}" for color, label in UNSEEN}
    asking = Counter(row["split"] for row in rows if any(pair in row["question"] for pair in pairs))
    assert set(asking) == {"compositional"} and asking["compositional"] > 20


def test_of_three_equal_things_nobody_asks_where_the_one_is() -> None:
    kites = tuple(Thing("kite", "red", 0, column, (0.0, 0.0, 10.0, 10.0)) for column in range(3))
    boat = Thing("boat", "blue", 1, 1, (20.0, 40.0, 40.0, 60.0))
    scene = Scene("sea", kites, (boat,), False, 32.0, 1.0)
    asked = [row for seed in range(40) for row in ask(scene, np.random.default_rng(seed), ASKED, SCENES)]
    places = {row["question"] for row in asked if row["kind"] == "place"}
    assert places and not any("kite" in question for question in places)
    above = {usual(row["answers"]) for row in asked if row["question"] == "what is above the boat?"}
    assert above == {"kite"}
    assert {"is the kite above the boat?", "what is below the kite?"}.isdisjoint(r["question"] for r in asked)
    counted = {r["question"]: usual(r["answers"]) for r in asked if r["kind"] == "count"}
    assert counted["how many kites are there?"] == counted["how many red kites are there?"] == "3"
    assert {usual(r["answers"]) for r in asked if r["kind"] == "count_all"} == {"4"}


def test_a_split_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match=r"questions.splits: 'tests' is none of train, val, test"):
        replace(CONFIG, questions=replace(ASKED, splits=("train", "tests")))
    with pytest.raises(ValueError, match="wrong is a share between 0 and 1, is 2"):
        replace(ASKED, wrong=2)
