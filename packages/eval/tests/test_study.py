"""The human study without a browser: words, plan, store, results and command."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from waiting import HANG_SECONDS

from diptych.eval.errors import UserError
from diptych.eval.study.command import main, make_parser, read_captions
from diptych.eval.study.figure import draw_figure
from diptych.eval.study.pictures import find_pictures, read_picture, scramble
from diptych.eval.study.plan import Item, make_plan
from diptych.eval.study.results import answers_csv, bootstrap, chosen_system, is_right, tally
from diptych.eval.study.store import Asked, Study, create_study
from diptych.eval.study.vocabulary import find_masks, is_match, read_vocabulary
from diptych.eval.words import read_words

WORDS = read_vocabulary()
SYSTEMS = ("ours", "dm-gan", "x-lxmert")


def captions(count: int) -> dict[str, str]:
    nouns, colours, verbs = ("dog", "cat", "zebra"), ("red", "blue"), ("sitting", "runs")
    return {
        f"p{i:03}": f"a {colours[i % 2]} {nouns[i % 3]} {verbs[i % 2]} near a wall {i}" for i in range(count)
    }


def folders(root: Path, names: tuple[str, ...], keys: list[str]) -> dict[str, dict[str, Path]]:
    result: dict[str, dict[str, Path]] = {}
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for place, key in enumerate(keys):
            color = (40 + 60 * number, 5 * place % 255, 90)
            Image.new("RGB", (24, 24), color).save(root / name / f"{key}.png")
        result[name] = find_pictures(root / name)
    return result


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three systems, twelve captions, six annotators."""
    texts = captions(12)
    pictures = folders(tmp_path, SYSTEMS, list(texts))
    plan = make_plan(texts, SYSTEMS, WORDS, captions_per_category=3, annotators=6, answers_per_item=4, seed=3)
    create_study(tmp_path / "study.db", plan, pictures, title="Trial", seed=3)
    return Study(tmp_path / "study.db")


# --- words


def test_coco_words_are_as_many_as_the_paper_says_and_clearly_told_apart() -> None:
    assert {name: len(words) for name, words in WORDS.forms.items()} == {"noun": 80, "verb": 64, "colour": 10}
    for category, words in WORDS.forms.items():
        counts = Counter(form for forms in words.values() for form in forms)
        assert [form for form, count in counts.items() if count > 1] == [], category


@pytest.mark.parametrize(
    ("word", "category", "typed"),
    [
        ("sit", "verb", "sitting sits sat Sit SITTING. a\u00a0sit"),
        ("ride", "verb", "riding rides rode ridden ride"),
        ("fly", "verb", "flies flying flew"),
        ("lie", "verb", "lying laying lies"),
        ("carry", "verb", "carries carried carrying"),
        ("knife", "noun", "knives knife"),
        ("person", "noun", "people persons the\u00a0person"),
        ("bus", "noun", "buses"),
        ("sheep", "noun", "sheep"),
        ("hot dog", "noun", "hotdog hot-dogs"),
        ("toothbrush", "noun", "toothbrushes"),
        ("gray", "colour", "grey Gray"),
    ],
)
def test_inflected_forms_match(word: str, category: str, typed: str) -> None:
    for answer in typed.split(" "):
        assert is_match(answer, WORDS.forms[category][word]), answer
    for wrong in ("", "thing", word + "x", word[:-1], "s" + word):
        assert not is_match(wrong, WORDS.forms[category][word]), wrong


def test_masks_take_whole_entries_and_nothing_that_the_caption_gives_away() -> None:
    caption = "Two dogs sitting by a dog and a traffic light near a parking lot, an orange hot dog."
    found = [
        (mask.category, mask.word, caption[mask.start : mask.end]) for mask in find_masks(caption, WORDS)
    ]
    assert found == [
        ("verb", "sit", "sitting"),
        ("noun", "traffic light", "traffic light"),
        ("noun", "hot dog", "hot dog"),
    ]
    # by another form, another word's form or a compound
    for gives_away in (
        "a man skiing down a ski slope", "a man skiing with one of his skis", "a bear with a teddy bear",
        "a gray cat, a grey sky, a cat",
    ):  # fmt: skip
        assert [mask.word for mask in find_masks(gives_away, WORDS)] in ([], ["teddy bear"]), gives_away
    # uninflected it may be another word ("a run"), and "orange" a fruit or a colour
    assert find_masks("a run by an orange", WORDS) == []


def test_words_are_those_of_r_precision_hard() -> None:
    lists = read_words("coco")
    for category, rows in {"noun": lists.nouns, "verb": lists.verbs, "colour": lists.colors}.items():
        assert [*WORDS.forms[category]] == [row[0] for row in rows]
        assert all({*row} <= WORDS.forms[category][row[0]] for row in rows)
    # a parking lot, ski poles beside one who skis, an orange bag of oranges, a bit of snow: no tagger tells
    assert not {"parking", "parks", "skis", "orange", "oranges", "bit"} & {*WORDS.hidden}
    assert WORDS.hidden["parked"] == ("verb", "park") and WORDS.hidden["grey"] == ("colour", "gray")


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    """The format that docs/human-study.md and --words' help promise, every key of it."""
    content = {
        "noun": ["Fish", "leaf"], "verb": ["swim", "rest"], "colour": ["teal"], "shape": ["box"],
        "irregular": {"swim": ["swam", "swum"], "teal": ["teals"]}, "ambiguous": ["resting", "teal"],
    }  # fmt: skip
    (tmp_path / "words.json").write_text(json.dumps(content))
    words = read_vocabulary(tmp_path / "words.json")
    assert {category: [*found] for category, found in words.forms.items()} == {
        "noun": ["fish", "leaf"], "verb": ["swim", "rest"], "colour": ["teal"], "shape": ["box"]
    }  # fmt: skip
    assert {"swims", "swimming", "swam", "swum"} < words.forms["verb"]["swim"]
    assert words.forms["noun"]["leaf"] == {"leaf", "leafs", "leaves"}
    assert words.forms["colour"]["teal"] == {"teal", "teals"}
    found = [mask.word for mask in find_masks("fish rested on leaves in teal boxes, swum", words)]
    assert find_masks("they rest, resting", words) == []
    assert found == ["fish", "rest", "leaf", "box", "swim"]


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{", '{"noun": "dog"}', '{"noun": []}', '{"noun": ["a"], "ambiguous": 3}',
        '{"colour": ["orange"], "ambiguous": ["orange"]}', '{"noun": ["dog"], "noun": ["cat"]}',
    ],
)
def test_bad_word_lists_are_user_errors(tmp_path: Path, content: str) -> None:
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(UserError, match="words.json"):
        read_vocabulary(tmp_path / "words.json")


# --- plan


def test_a_plan_is_the_same_for_the_same_seed_only() -> None:
    first, again = (make_plan(captions(40), SYSTEMS, WORDS, seed=5) for _ in range(2))
    assert first == again
    other = make_plan(captions(40), SYSTEMS, WORDS, seed=6)
    assert first.items != other.items and first.orders != other.orders


def test_items_are_shared_out_evenly_and_sides_are_balanced() -> None:
    plan = make_plan(
        captions(40),
        SYSTEMS,
        WORDS,
        captions_per_pair=30,
        captions_per_category=10,
        annotators=10,
        answers_per_item=3,
    )
    answers = Counter(question.item for order in plan.orders for question in order)
    assert {answers[i] for i, item in enumerate(plan.items) if not item.check} == {3}
    lengths = [len(order) for order in plan.orders]
    assert max(lengths) - min(lengths) <= 3  # one per kind
    for order in plan.orders:
        assert len({question.item for question in order}) == len(order)
        for pair in {(plan.items[q.item].kind, plan.items[q.item].other) for q in order}:
            sides = [
                q.system_first
                for q in order
                if (plan.items[q.item].kind, plan.items[q.item].other) == pair
                and not plan.items[q.item].check
            ]
            assert abs(sum(sides) - (len(sides) - sum(sides))) <= 1
    # not the same order or sides for two people
    assert len({order for order in plan.orders}) == len(plan.orders)


def test_nobody_meets_a_hidden_word_twice_or_after_its_caption() -> None:
    plan = make_plan(captions(40), SYSTEMS, WORDS, captions_per_category=10, annotators=9, answers_per_item=3)
    for order in plan.orders:
        items = [plan.items[question.item] for question in order]
        hidden = [item.image for item in items if item.kind == "hummus" and not item.check]
        assert len(hidden) == len(set(hidden)) > 0
        kinds = [item.kind for item in items]
        assert kinds == sorted(kinds, key=("hummus", "fidelity", "semantics").index)
        # two checks of each kind, one in each half
        for kind in set(kinds):
            places = [i for i, item in enumerate(item for item in items if item.kind == kind) if item.check]
            middle = kinds.count(kind) / 2
            assert len(places) == 2 and places[0] <= middle <= places[1] + 1
    for item in plan.items:
        if item.kind == "hummus":
            assert is_match(item.caption[item.start : item.end], item.accepted)
            assert item.check or item.word not in item.caption[: item.start]
        else:
            assert item.caption == "" or item.kind == "semantics"


def test_what_cannot_be_asked_is_a_user_error() -> None:
    texts = captions(6)
    with pytest.raises(UserError, match="want 3 --annotators"):
        make_plan(texts, SYSTEMS, WORDS, annotators=2)
    with pytest.raises(UserError, match="compare two systems"):
        make_plan(texts, ["one"], WORDS)
    with pytest.raises(UserError, match="--words"):
        make_plan({"p": "nothing of note"}, SYSTEMS, WORDS)
    for wrong, option in (
        ({"seed": -1}, "--seed"), ({"captions_per_pair": 0}, "--items"), ({"captions_per_category": 0}, "--masked"),
        ({"annotators": 0}, "--annotators"), ({"checks_per_kind": -1}, "--checks"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=option):
            make_plan(texts, SYSTEMS, WORDS, **wrong)
    only_hummus = make_plan(texts, ["one"], WORDS, kinds=["hummus"], annotators=1, answers_per_item=1)
    assert {item.kind for item in only_hummus.items} == {"hummus"}


# --- pictures


def test_stored_pictures_hold_pixels_and_nothing_else(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Software", "dm-gan")
    picture = Image.effect_noise((40, 30), 50).convert("RGB")
    picture.save(tmp_path / "a.png", pnginfo=notes, icc_profile=b"dm-gan" * 30)
    exif = Image.Exif()
    exif[0x0131] = "dm-gan"
    picture.save(tmp_path / "b.jpg", exif=exif, comment=b"dm-gan", icc_profile=b"dm-gan" * 30)
    for name in ("a.png", "b.jpg"):
        assert b"dm-gan" in (tmp_path / name).read_bytes()
        png = read_picture(tmp_path / name)
        assert png.startswith(b"\x89PNG") and b"dm-gan" not in png
        assert set(Image.open(io.BytesIO(png)).info) == set()
    kept = np.asarray(Image.open(io.BytesIO(read_picture(tmp_path / "a.png"))))
    assert (kept == np.asarray(picture)).all()
    scrambled = np.asarray(Image.open(io.BytesIO(scramble(read_picture(tmp_path / "a.png"), "1"))))
    assert (scrambled != kept[: scrambled.shape[0], : scrambled.shape[1]]).mean() > 0.5

    Image.new("RGB", (3000, 1500)).save(tmp_path / "large.png")
    assert Image.open(io.BytesIO(read_picture(tmp_path / "large.png"))).size == (1024, 512)
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(UserError, match="torn.png"):
        read_picture(tmp_path / "torn.png")


# --- store


def test_links_are_unguessable_and_not_drawn_from_the_seed(tmp_path: Path) -> None:
    texts = captions(6)
    pictures = folders(tmp_path, SYSTEMS, list(texts))
    plan = make_plan(texts, SYSTEMS, WORDS, annotators=6)
    tokens: list[str] = []
    for name in ("one.db", "two.db"):
        create_study(tmp_path / name, plan, pictures, title="", seed=0)
        with sqlite3.connect(tmp_path / name) as connection:
            for table, column in (("annotators", "token"), ("pictures", "token"), ("study", "admin")):
                tokens += [row[0] for row in connection.execute(f"SELECT {column} FROM {table}")]
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert len(set(tokens)) == len(tokens)
    # 128 bits and more
    assert min(map(len, tokens)) >= 22
    # every place of a token takes many values: nothing in it counts or repeats
    assert all(len(set(letters)) > 8 for letters in zip(*tokens, strict=False))


def test_an_existing_study_is_not_overwritten_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    texts = captions(6)
    pictures = folders(tmp_path / "systems", SYSTEMS, list(texts))
    plan = make_plan(texts, SYSTEMS, WORDS, annotators=6)
    (tmp_path / "systems/x-lxmert/p003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="p003.png"):
        create_study(tmp_path / "study.db", plan, pictures, title="", seed=0)
    with pytest.raises(UserError, match="p003.png"):
        create_study(tmp_path / "[a].db", plan, pictures, title="", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["systems"]
    (tmp_path / "study.db").write_bytes(b"answers")
    with pytest.raises(UserError, match="not overwritten"):
        create_study(tmp_path / "study.db", plan, pictures, title="", seed=0)
    assert (tmp_path / "study.db").read_bytes() == b"answers"
    for path in (tmp_path / "study.db", tmp_path / "absent.db", tmp_path):
        with pytest.raises(UserError):
            Study(path)


def ask(study: Study, number: int = 0) -> Asked:
    asked = study.next_question(study.annotators()[number])
    assert asked is not None
    return asked


def test_the_first_of_two_submissions_counts_and_a_changed_answer_replaces_it(study: Study) -> None:
    annotator = study.annotators()[0]
    asked = ask(study)
    assert study.add_answer(asked, 0, "dog", 1.5)
    assert not study.add_answer(asked, 0, "cat", 2.0)
    with pytest.raises(ValueError, match="revision 3"):
        study.add_answer(asked, 3, "cat", 2.0)
    last = study.last_question(annotator)
    assert last is not None and (last.id, last.answer, last.revision) == (asked.id, "dog", 1)
    assert study.add_answer(last, 1, "zebra", None)
    assert not study.add_answer(asked, 0, "horse", None)
    [row] = [row for row in study.answered() if row.answer is not None]
    assert (row.answer, row.revision, row.seconds) == ("zebra", 1, None)
    assert ask(study).position == 1
    # somebody else's order is not touched
    assert ask(study, 1).position == 0


def test_back_does_not_lead_across_kinds(study: Study) -> None:
    annotator = study.annotators()[0]
    assert study.last_question(annotator) is None
    before = None
    while (asked := study.next_question(annotator)) is not None:
        last = study.last_question(annotator)
        assert (last is not None) == (before == asked.item.kind)
        assert study.add_answer(asked, 0, "first", 1.0)
        before = asked.item.kind
    last = study.last_question(annotator)
    assert last is not None and last.position == last.total - 1


def _submit(path: Path, start: object, replies: object) -> None:
    study = Study(path)
    asked = ask(study)
    start.wait()
    replies.put([study.add_answer(asked, 0, str(os.getpid()), None) for _ in range(20)])


def test_of_submissions_by_many_processes_one_counts(study: Study) -> None:
    context = multiprocessing.get_context("fork")
    start, replies = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_submit, args=(study.path, start, replies)) for _ in range(4)]
    for process in processes:
        process.start()
    kept = [replies.get(timeout=HANG_SECONDS) for _ in processes]
    for process in processes:
        process.join()
    assert sum(map(sum, kept)) == 1
    assert len([row for row in study.answered() if row.answer is not None]) == 1


def test_what_was_confirmed_survives_a_kill(study: Study) -> None:
    script = """
import sys
from pathlib import Path
from diptych.eval.study.store import Study
study = Study(Path(sys.argv[1]))
annotator = study.annotators()[0]
while (asked := study.next_question(annotator)) is not None:
    study.add_answer(asked, 0, "first", 1.0)
    print(asked.position, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(study.path)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    confirmed = [int(process.stdout.readline()) for _ in range(7)]
    process.send_signal(signal.SIGKILL)
    confirmed += [int(line) for line in process.stdout.read().split()]
    process.wait()
    kept = {row.position for row in study.answered() if row.answer is not None}
    assert kept >= set(confirmed) and len(kept) <= len(confirmed) + 1
    with sqlite3.connect(study.path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with study._connected() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


# --- results


def answer_all(study: Study, seed: int, careless: tuple[str, ...] = ()) -> None:
    """Everybody answers by chance; checks rightly, save careless ones. In one transaction, which is faster."""
    random, answers = np.random.default_rng(seed), []
    for row in study.answered():
        item, answer = row.item, "first" if row.system_first else "second"
        if item.kind == "hummus":
            answer = (item.word or "") if item.check or random.random() < 0.6 else "thing"
        elif not item.check:
            answer = str(random.choice(["first", "second", "tie"], p=[0.5, 0.3, 0.2]))
        elif row.annotator in careless:
            answer = "tie"
        answers.append((answer, row.annotator, row.position))
    with sqlite3.connect(study.path) as connection:
        connection.executemany(
            """INSERT INTO answers SELECT questions.id, 0, ?, 2.0, 'now' FROM questions
               JOIN annotators ON annotators.id = questions.annotator
               WHERE annotators.name = ? AND questions.position = ?""",
            answers,
        )


def test_sides_are_turned_back_into_systems() -> None:
    for first in (True, False):
        row = Asked(1, 0, 1, Item("semantics", "p", "c", "ours", "theirs"), first, ("x", "y"), 0, None)
        answered = _row(row.item, first, "first" if first else "second")
        assert chosen_system(answered) == "ours" and is_right(answered)
        answered = _row(row.item, first, "second" if first else "first")
        assert chosen_system(answered) == "theirs" and not is_right(answered)
        assert chosen_system(_row(row.item, first, "tie")) == "tie"
    scrambled = _row(Item("fidelity", "p", "", "ours", check=True), True, "second")
    assert chosen_system(scrambled) == "scrambled" and not is_right(scrambled)


def _row(item: Item, first: bool, answer: str):
    from diptych.eval.study.store import Answered

    return Answered("A01", 0, 0, item, first, answer, 0, 1.0, "now")


@pytest.mark.parametrize("resample", ["items", "annotators"])
def test_tallies_and_intervals_equal_a_count_by_hand(study: Study, resample: str) -> None:
    answer_all(study, seed=1)
    results = tally(study, resample=resample, resamples=400)
    with sqlite3.connect(study.path) as connection:
        rows = connection.execute(
            """SELECT annotators.name, items.content, questions.system_first, answers.answer
               FROM answers JOIN questions ON questions.id = answers.question
               JOIN annotators ON annotators.id = questions.annotator JOIN items ON items.id = questions.item
               ORDER BY annotators.id, questions.position"""
        ).fetchall()
    rows = [(name, json.loads(content), first, answer) for name, content, first, answer in rows]
    rows = [row for row in rows if not row[1]["check"]]

    def resampled(clusters: list[str]) -> list[list[str]]:
        """The same draws as lists of names with repetitions."""
        weights = np.random.default_rng(0).multinomial(
            len(clusters), [1 / len(clusters)] * len(clusters), size=400
        )
        return [[name for name, n in zip(clusters, row, strict=True) for _ in range(n)] for row in weights]

    for preference in results.preferences:
        mine = [r for r in rows if r[1]["kind"] == preference.kind and r[1]["other"] == preference.other]
        grouped: dict[str, list[int]] = {}
        for name, item, first, answer in mine:
            value = 0 if answer == "tie" else 1 if (answer == "first") == bool(first) else -1
            grouped.setdefault(item["image"] if resample == "items" else name, []).append(value)
        values = [value for group in grouped.values() for value in group]
        assert preference.answers == len(values) == 12 * 4
        assert preference.system_share.value == pytest.approx(values.count(1) / len(values))
        assert preference.tie_share.value == pytest.approx(values.count(0) / len(values))
        assert preference.other_share.value == pytest.approx(values.count(-1) / len(values))
        assert preference.margin.value == pytest.approx(np.mean(values))
        means = [np.mean([v for name in draw for v in grouped[name]]) for draw in resampled(list(grouped))]
        low, high = np.quantile(means, [0.025, 0.975])
        assert (preference.margin.low, preference.margin.high) == pytest.approx((low, high))
        assert preference.margin.low < preference.margin.value < preference.margin.high
    assert {(p.kind, p.other) for p in results.preferences} == {
        (kind, other) for kind in ("fidelity", "semantics") for other in SYSTEMS[1:]
    }

    for hummus in results.hummus:
        votes: dict[tuple[str, str], list[tuple[str, bool]]] = {}
        for name, item, _, answer in rows:
            mine = item["kind"] == "hummus" and item["system"] == hummus.system
            if mine and hummus.category in ("all", item["category"]):
                votes.setdefault((item["image"], item["word"]), []).append((name, answer == item["word"]))

        def score(names: list[str], votes: dict = votes) -> float:
            found = [
                [right for name in names for who, right in given if who == name] for given in votes.values()
            ]
            decided = [2 * sum(given) > len(given) for given in found if given]
            return sum(decided) / len(decided) if decided else float("nan")

        everybody = list(
            dict.fromkeys(name for name, *_ in rows if any(name == w for g in votes.values() for w, _ in g))
        )
        assert hummus.items == len(votes)
        assert hummus.score.value == pytest.approx(score(everybody))
        if resample == "annotators":
            low, high = np.nanquantile([score(draw) for draw in resampled(everybody)], [0.025, 0.975])
        else:
            decided = {str(key): 2 * sum(r for _, r in given) > len(given) for key, given in votes.items()}
            means = [np.mean([decided[name] for name in draw]) for draw in resampled(list(decided))]
            low, high = np.quantile(means, [0.025, 0.975])
        assert (hummus.score.low, hummus.score.high) == pytest.approx((low, high))


def test_intervals_cover_a_known_share_as_often_as_they_say() -> None:
    random, covered = np.random.default_rng(7), 0
    for _ in range(200):
        wins = random.random(80) < 0.3
        counts = np.stack([wins, ~wins], axis=1).astype(np.int64)
        [interval] = bootstrap(counts, lambda sums: sums[:, :1] / sums.sum(1, keepdims=True), 500)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_annotators_who_fail_checks_are_flagged_and_left_out_on_request(study: Study) -> None:
    answer_all(study, seed=2, careless=("A02", "A05"))
    results = tally(study, resamples=50)
    assert [row.annotator for row in results.attendance if row.flagged] == ["A02", "A05"]
    assert all(row.checks_answered == 6 and row.answered == row.questions for row in results.attendance)
    without = tally(study, resamples=50, without_flagged=True)
    assert 0 < without.preferences[0].answers < results.preferences[0].answers

    table = list(csv.DictReader(io.StringIO(answers_csv(study))))
    assert len(table) == sum(row.questions for row in results.attendance)
    assert {row["annotator"] for row in table if row["flagged"] == "1"} == {"A02", "A05"}
    checks = [row for row in table if row["check"] == "1"]
    assert len(checks) == 36 and {row["right"] for row in checks if row["flagged"] == "0"} == {"1"}
    assert {row["chosen"] for row in table if row["kind"] == "semantics" and row["check"] == "0"} <= {
        *SYSTEMS,
        "tie",
    }


def test_csv_cells_are_no_formulas(study: Study) -> None:
    study.add_answer(ask(study), 0, "=1+1", None)
    [row] = csv.DictReader(io.StringIO(answers_csv(study)))
    assert row["answer"] == "'=1+1"


def test_the_figure_shows_what_there_is(study: Study) -> None:
    assert b"No answers yet" in draw_figure(tally(study), "svg")
    answer_all(study, seed=3)
    results = tally(study, resamples=50)
    svg = draw_figure(results, "svg")
    assert svg == draw_figure(results, "svg")
    for text in (b"Matches the caption better", b"Looks more real", b"dm-gan", b"over captions", b"HUMMUS"):
        assert text in svg
    share = f"{results.preferences[0].system_share.value:.0%}"
    assert share.encode() in svg
    with Image.open(io.BytesIO(draw_figure(results, "png"))) as png:
        assert png.width > 1000


def test_the_figure_shows_names_as_they_are(study: Study) -> None:
    answer_all(study, seed=3)
    results = tally(study, resamples=10)
    names = dict(zip(SYSTEMS, ("b$\\foo$", "_ours", "x-lxmert"), strict=True))
    renamed = replace(
        results,
        preferences=tuple(
            replace(row, system=names[row.system], other=names[row.other]) for row in results.preferences
        ),
        hummus=tuple(replace(row, system=names[row.system]) for row in results.hummus),
    )
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", draw_figure(renamed, "svg").decode())
    assert {*names.values()} <= {*shown}, "of the legend"


# --- command


def test_captions_are_read_from_csv_and_json(tmp_path: Path) -> None:
    wanted = {"a": "one, two", "7": "three"}
    files = {
        "a.csv": 'image,caption\na.png,"one, two"\n7,three\n',
        "b.json": '{"a.jpg": "one, two", "7": "three "}',
        "c.json": '[{"image_id": "a", "caption": "one, two"}, {"image_id": 7, "caption": "three"}]',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert read_captions(tmp_path / name) == wanted
    for text in ("[]", "3", '[{"image": "a"}]', '{"a": ""}', '{"a": "x", "a.png": "y"}', "{"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="bad.json"):
            read_captions(tmp_path / "bad.json")


def test_the_command_goes_from_folders_to_the_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = captions(8)
    folders(tmp_path, ("ours", "theirs"), list(texts))
    (tmp_path / "captions.json").write_text(json.dumps(texts))
    study, captions_file = str(tmp_path / "study.db"), str(tmp_path / "captions.json")
    systems = ["--system", f"ours={tmp_path}/ours", "--system", f"theirs={tmp_path}/theirs"]
    assert main(["create", study, "--captions", captions_file, *systems, "--annotators", "4"]) == 0
    assert "8 of 8 captions" in capsys.readouterr().out
    assert main(["links", study, "--url", "https://example.org/"]) == 0
    links = capsys.readouterr().out.splitlines()
    assert len(links) == 5 and links[0].startswith("admin  https://example.org/a/")
    answer_all(Study(Path(study)), seed=0)
    outputs = {name: tmp_path / name for name in ("results.json", "answers.csv", "figure.png", "figure.svg")}
    for plot in ("figure.png", "figure.svg"):
        assert main(["results", study, "--plot", str(outputs[plot])]) == 0
    assert (
        main(
            [
                "results",
                study,
                "--json",
                str(tmp_path / "results.json"),
                "--csv",
                str(tmp_path / "answers.csv"),
            ]
        )
        == 0
    )
    assert "semantics: ours" in capsys.readouterr().out
    assert json.loads(outputs["results.json"].read_text())["preferences"][0]["other"] == "theirs"
    assert all(path.stat().st_size > 500 for path in outputs.values())


def test_the_commands_of_the_documentation_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[3] / "docs/human-study.md").read_text()
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in blocks.splitlines() if line.startswith("diptych-study")]
    assert [command[1] for command in commands] == ["create", "serve", "links", "results"]

    monkeypatch.chdir(tmp_path)
    texts = captions(12)
    folders(tmp_path / "generated", ("ours", "dm-gan"), list(texts))
    (tmp_path / "captions.json").write_text(json.dumps(texts))
    uvicorn = pytest.importorskip("uvicorn")
    listening: list[tuple[str, int]] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda _, sockets: listening.append(sockets[0].getsockname()))
    for command in commands:
        # not the port of another program of this machine
        assert main(command[1:] + ["--port", "0"] * (command[1] == "serve")) == 0
        if command[1] == "create":
            answer_all(Study(tmp_path / "study.db"), seed=0)
    assert [host for host, _ in listening] == ["127.0.0.1"]
    said = capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "study.db", "--port", str(taken.getsockname()[1])]) == 1
        assert "choose another" in capsys.readouterr().err
    assert "https://study.example.org/s/" in said and "semantics: ours" in said
    assert {"figure.png", "answers.csv", "results.json"} <= {path.name for path in tmp_path.iterdir()}

    # the table of options says what the parser says
    for names, default in re.findall(r"^\| (`--.*?) \| (.*?) \|", text, re.MULTILINE):
        for name, value in zip(re.findall(r"--(\w+)", names), default.split(", "), strict=True):
            options = make_parser().parse_args(["create", "x", "--captions", "x", "--system", "x"])
            assert value in ("all", "COCO's") or getattr(options, name) == int(value)


def test_mistakes_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = captions(3)
    folders(tmp_path, ("ours", "theirs"), list(texts))
    (tmp_path / "captions.json").write_text(json.dumps({"elsewhere": "a dog"}))
    create = ["create", str(tmp_path / "study.db"), "--captions", str(tmp_path / "captions.json")]
    ours = f"ours={tmp_path}/ours"
    for arguments, said in (
        ([*create, "--system", ours, "--system", f"theirs={tmp_path}/theirs"], "captions.json"),
        ([*create, "--system", ours, "--system", f"theirs={tmp_path}/absent"], "absent"),
        ([*create, "--system", ours, "--system", ours], "taken"),
        ([*create, "--system", "ours"], "NAME=FOLDER"),
        (["results", str(tmp_path / "absent.db")], "absent.db"),
        (["results", str(tmp_path / "captions.json")], "captions.json"),
        (["serve", str(tmp_path / "absent.db")], "absent.db"),
        (["results", str(tmp_path / "absent.db"), "--plot", "x.pdf"], "x.pdf"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
    assert not (tmp_path / "study.db").exists()


def test_ctrl_c_ends_without_a_traceback(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    assert main(["serve", str(study.path), "--port", "0"]) == 0, "serving ends so"
    monkeypatch.setattr(Study, "annotators", interrupted)
    assert main(["links", str(study.path)]) == 130
    assert capsys.readouterr().err == "diptych-study: interrupted\n"


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_results_are_not_written_to_folders(
    study: Study, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(study.path), option, "."]) == 1
    shown = capsys.readouterr()
    assert shown.err == "diptych-study: .: is a folder; give the name of a file\n" and shown.out == ""
