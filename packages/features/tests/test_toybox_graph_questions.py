"""What Toybox asks in GQA's and NLVR2's manner: true, balanced, and with what follows from an answer."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from asked_toybox import ASKED, CONFIG, GRAMMAR

from diptych.features.datasets.toybox import (
    CLASSES,
    COLORS,
    build_graph_questions,
    build_questions,
    build_statements,
    build_toybox,
)
from diptych.features.datasets.toybox.graph_questions import KINDS
from diptych.features.datasets.toybox.statements import KINDS as STATEMENTS
from diptych.features.questions import read_questions, write_questions

SCENERIES = ("desert", "field", "night", "sea", "snow")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(build_graph_questions(CONFIG, 0))


@pytest.fixture(scope="module")
def statements() -> list[dict]:
    return list(build_statements(CONFIG, 0))


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[tuple[str, str, str]], str]]:
    """Of each picture (color, class, place) of every thing, and the scenery, from the manifest's boxes."""
    found = {}
    for row in build_toybox(CONFIG, 0, tmp_path_factory.mktemp("toybox")):
        *objects, scenery = row["objects"]
        found[row["image_id"]] = (
            [(o["attributes"][0], o["label"], _place(o["bbox"])) for o in objects],
            scenery["label"],
        )
    return found


def _place(box: list[float]) -> str:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return f"{'top' if y < 32 else 'bottom'} {'left' if x < 24 else 'right' if x > 40 else 'middle'}"


def answer(question: str, picture: tuple[list[tuple[str, str, str]], str]) -> str:
    """What somebody answers who sees the picture; worked out from the words, in no way that the asking uses."""
    objects, scenery = picture
    words = question.rstrip("?").split()
    labels = [w for w in (w if w == "fish" else w.removesuffix("s") for w in words) if w in CLASSES]
    colors = [w for w in words if w in COLORS]
    color = {label: color for color, label, _ in objects}
    place = {label: place for _, label, place in objects}
    if "scenery" in words:
        named = [word for word in words if word in SCENERIES]
        return scenery if len(named) != 1 else "yes" if named[0] == scenery else "no"
    if "same" in words:
        return "yes" if color[labels[0]] == color[labels[1]] else "no"
    if question.startswith(("is there a", "can you see")):
        there = [label in color and (not colors or color[label] == colors[0]) for label in labels]
        return "yes" if (any if "or" in words else all)(there) else "no"
    if question.startswith("where"):
        return place[labels[0]]
    if question.startswith(("what is at", "which object is at", "is the object at")):
        return next(
            label for _, label, where in objects if where in question and (not labels or label in labels)
        )
    sides = [word for word in words if word in ("left", "right", "above", "below")]
    if question.startswith(("what is", "which object is")):
        return next(label for _, label, where in objects if _beside(sides[0], where, place[labels[0]]))
    if sides:
        held = [side for side in sides if _beside(side, place[labels[0]], place[labels[1]])]
        return held[0] if len(sides) == 2 else "yes" if held else "no"
    if len(colors) == 1:
        return "yes" if color[labels[0]] == colors[0] else "no"
    return color[labels[0]]


def _beside(side: str, one: str, other: str) -> bool:
    columns = ("left", "middle", "right")
    (row, column), (other_row, other_column) = one.split(), other.split()
    x, other_x = columns.index(column), columns.index(other_column)
    if side in ("left", "right"):
        return row == other_row and (x < other_x if side == "left" else x > other_x)
    return x == other_x and row != other_row and (row == "top") == (side == "above")


def test_every_answer_is_true_and_every_kind_is_asked(rows: list[dict], things: dict) -> None:
    for row in rows:
        assert row["answers"] == [answer(row["question"], things[row["image_ids"][0]])], row
    kinds = Counter(row["kind"] for row in rows)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 70, kinds
    by_picture = defaultdict(list)
    for row in rows:
        by_picture[row["image_ids"][0]].append(row["question"])
    assert len(by_picture) == 980
    assert all(len(asked) == len(set(asked)) == 10 for asked in by_picture.values())


def test_what_is_entailed_has_one_answer_in_all_pictures_with_the_first_one(
    rows: list[dict], things: dict
) -> None:
    """In every picture in which the first question can be asked and has this answer, so has the second its own."""
    known = {row["question_id"]: row for row in rows}
    pictures = list(things.values())[::6]
    held, broken = 0, []
    for row in rows[::40]:
        for name in row["entailed"]:
            other = known[name]
            assert name != row["question_id"] and other["image_ids"] == row["image_ids"]
            for picture in pictures:
                if not all(_can_be_asked(asked["question"], picture) for asked in (row, other)):
                    continue
                try:
                    same = answer(row["question"], picture) == row["answers"][0]
                except (KeyError, StopIteration, IndexError):  # it asks about what is not there
                    continue
                if same and answer(other["question"], picture) != other["answers"][0]:
                    broken.append((row["question"], row["answers"], other["question"], picture))
                held += same
    assert not broken[:1] and held > 500, (held, len(broken))


def _can_be_asked(question: str, picture: tuple[list[tuple[str, str, str]], str]) -> bool:
    """Whether there is one of each thing that the question calls "the kite"."""
    number = Counter(label for _, label, _ in picture[0])
    words = question.rstrip("?").split()
    called = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "the" and words[i + 1] in CLASSES]
    singles = all(number[label] == 1 for label in called)
    alone = not question.startswith(("what is", "which object is")) or all(
        n == 1 or label not in called for label, n in number.items()
    )
    return singles and alone


def test_binary_questions_of_the_balanced_part_are_half_no(rows: list[dict]) -> None:
    for kind in KINDS:
        answers = Counter(row["answers"][0] for row in rows if row["kind"] == kind and row["balanced"])
        if set(answers) <= {"yes", "no"}:
            assert 0.4 < answers["yes"] / answers.total() < 0.6, (kind, answers)
        else:
            assert max(answers.values()) < 0.45 * answers.total(), (kind, answers)
    all_binary = Counter(row["answers"][0] for row in rows if row["kind"].startswith("verify"))
    assert all_binary["yes"] > 0.56 * all_binary.total()
    assert 0.85 < sum(row["balanced"] for row in rows) / len(rows) < 0.97


def test_answers_are_among_the_choices_and_groups_are_those_of_open_answers(rows: list[dict]) -> None:
    for row in rows:
        valid, plausible = row["choices"]["valid"], row["choices"]["plausible"]
        assert row["answers"][0] in plausible and set(plausible) <= set(valid)
        assert (row["group"] is None) == (set(valid) == {"yes", "no"})
        if row["kind"].startswith("choose"):
            assert len(valid) == 2 and sum(choice in row["question"] for choice in valid) == 2
    assert {row["group"] for row in rows} == {None, "color", "object", "place", "scenery", "side"}


def test_statements_are_true_or_false_of_their_pictures(statements: list[dict], things: dict) -> None:
    for row in statements:
        left, right = (things[name] for name in row["image_ids"])
        assert row["image_ids"][0] != row["image_ids"][1]
        assert all(name.startswith(row["split"]) for name in row["image_ids"])
        assert row["answers"] == ["true" if _holds(row["question"], left, right) else "false"], row
    kinds = Counter(row["kind"] for row in statements)
    assert set(kinds) == set(STATEMENTS) and min(kinds.values()) > 300, kinds


def _holds(statement: str, left: tuple, right: tuple) -> bool:
    words = statement.split()
    label = next((w for w in (w if w == "fish" else w.removesuffix("s") for w in words) if w in CLASSES), "")
    color = next((word for word in words if word in COLORS), "")
    (here, scenery), (there, other_scenery) = left, right
    if "scenery" in words:
        return scenery == other_scenery
    if "in all" in statement:
        counted = sum(not label or thing[1] == label for thing in (*here, *there))
        return counted == NUMBERS.index(next(word for word in words if word in NUMBERS))
    if "than" in words:
        more, fewer = len(here), len(there)
        first = "left" if words.index("left") < words.index("right") else "right"
        if (first == "left") != ("more" in words):
            more, fewer = fewer, more
        return more > fewer
    has = [
        any(thing[1] == label and color in ("", thing[0]) for thing in picture) for picture in (here, there)
    ]
    if "left" in words or "right" in words:
        return has["right" in words]
    return {"both": all(has), "only": has[0] != has[1], "least": any(has)}[
        next(word for word in words if word in ("both", "only", "least"))
    ]


def test_each_statement_has_as_many_pairs_that_make_it_true_as_false(statements: list[dict]) -> None:
    groups = defaultdict(list)
    for row in statements:
        split, group, pair, statement = row["question_id"].split("-")
        assert split == row["split"] and statement == "0"
        groups[split, group].append((row["question"], row["answers"][0], pair))
    assert len(groups) == round(600 * 1.5) + 30 + 450 + 90
    for rows in groups.values():
        assert len({question for question, _, _ in rows}) == 1
        assert sorted(truth for _, truth, _ in rows) == ["false", "false", "true", "true"]
        assert [pair for _, _, pair in rows] == ["0", "1", "2", "3"]


def test_two_pictures_alike_have_no_statements_rather_than_an_endless_search() -> None:
    one = replace(CONFIG, train=1, val=2, test=0, compositional=0)
    found = list(build_statements(one, 0))
    assert all(row["split"] == "val" for row in found)


def test_they_depend_on_seed_and_questions_alone(rows: list[dict], statements: list[dict]) -> None:
    other_captions = replace(CONFIG, captions=replace(GRAMMAR, where=0.1))
    assert list(build_graph_questions(other_captions, 0)) == rows
    assert list(build_statements(other_captions, 0)) == statements
    small = replace(CONFIG, train=5, val=0, test=0, compositional=0)
    known = {row["question_id"]: row for row in rows}
    again = list(build_graph_questions(small, 0))
    assert len(again) == 50 and all(known[row["question_id"]] == row for row in again)
    assert [row["question"] for row in build_graph_questions(small, 1)] != [row["question"] for row in again]
    nothing = replace(CONFIG, questions=replace(ASKED, graph_per_picture=0, statements_per_picture=0.0))
    assert not list(build_graph_questions(nothing, 0)) and not list(build_statements(nothing, 0))


def test_all_three_are_what_the_contract_asks_for(
    rows: list[dict], statements: list[dict], things: dict, tmp_path: Path
) -> None:
    for name, asked in (("vqa", build_questions(CONFIG, 0)), ("gqa", rows), ("nlvr2", statements)):
        table = write_questions(asked, tmp_path / f"{name}.parquet", things)
        assert read_questions(tmp_path / f"{name}.parquet").equals(table)


def test_more_than_there_is_to_ask_ends() -> None:
    config = replace(CONFIG, train=2, questions=replace(ASKED, splits=("train",), graph_per_picture=100_000))
    asked = [
        row["question"] for row in build_graph_questions(config, 0) if row["image_ids"] == ["train-000000"]
    ]
    assert 50 < len(asked) == len({*asked})
