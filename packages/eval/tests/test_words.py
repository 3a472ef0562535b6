"""Word lists, and captions with one word swapped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.eval import words
from diptych.eval.errors import UserError
from diptych.eval.words import CATEGORIES, WordLists, read_words, swapped_captions

COCO = read_words("coco")


def negatives(caption: str, category: str, words: WordLists = COCO, **options: int) -> tuple[str, ...]:
    found = swapped_captions([caption], words, category, **{"seed": 0, **options})
    return found[0].negatives if found else ()


def test_coco_s_lists_have_the_papers_sizes() -> None:
    sizes = {category: len({row[0] for row in COCO.rows(category)}) for category in CATEGORIES}
    assert sizes == {"nouns": 80, "verbs": 64, "colors": 10, "numbers": 10}


def test_a_word_is_swapped_for_nine_others_of_its_category() -> None:
    caption = "Two men stand by a red bus."
    wrong = negatives(caption, "colors")
    colors = {row[0] for row in COCO.colors} - {"red"}
    assert {text.replace("Two men stand by a", "").replace("an ", "").split()[-2] for text in wrong} == colors
    assert len(wrong) == 9 and len(set(wrong)) == 9 and caption not in wrong
    assert all(text.startswith(("Two men stand by a ", "Two men stand by an ")) for text in wrong)
    assert [text.split()[0] for text in negatives(caption, "numbers")].count("Two") == 0
    assert all(text.split()[0].istitle() for text in negatives(caption, "numbers"))


def test_the_form_stays_and_the_article_follows() -> None:
    plural = [text.split()[-1] for text in negatives("three dogs", "nouns", negatives=79)]
    assert {"people", "sheep", "knives", "benches", "mice"} <= {*plural} and "dog" not in plural
    wrong = negatives("a man is riding an elephant", "nouns", negatives=79)
    assert "a man is riding a dog" in wrong and "a man is riding an umbrella" in wrong
    assert all(text.endswith("ing") for text in negatives("he is riding", "verbs", negatives=63))
    assert "he is sitting" in negatives("he is riding", "verbs", negatives=63)


def test_what_is_no_such_word_stays() -> None:
    assert negatives("a park in the city", "verbs") == ()
    assert negatives("a hot dog on a plate", "nouns", negatives=79)[0].startswith("a")
    assert not any("hot " in text for text in negatives("a hot dog", "nouns", negatives=79))
    assert negatives("an orange on a plate", "colors") == ()
    assert negatives("she scatters bussing carts", "nouns") == ()
    assert negatives("nothing to see", "colors") == ()


def test_drawings_depend_on_the_seed_and_on_the_caption_alone() -> None:
    captions = [f"a {row[0]} and a dog" for row in COCO.nouns]
    first = swapped_captions(captions, COCO, "nouns", seed=0)
    assert first == swapped_captions(captions, COCO, "nouns", seed=0)
    assert first != swapped_captions(captions, COCO, "nouns", seed=1)
    some = swapped_captions(captions, COCO, "nouns", seed=0, limit=20)
    assert len(some) == 20 and all(one in first for one in some)
    assert len({one.word for one in first}) > 20, "now one noun, now the other"


def test_few_words_give_few_negatives() -> None:
    toybox = read_words("toybox")
    assert negatives("two red kites fly", "numbers", toybox) == ("three red kites fly",)
    assert len(negatives("two red kites fly", "colors", toybox)) == 5
    assert "two red fish fly" in negatives("two red kites fly", "nouns", toybox)
    assert {"two red kites rest", "two red kites sit"} <= {
        *negatives("two red kites fly", "verbs", toybox, negatives=20)
    }


def test_own_lists_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    lists = {"nouns": [["cat", "cats"], ["dog", "dogs"]], "verbs": [["runs"]], "colors": [], "numbers": []}
    path.write_text(json.dumps(lists))
    own = read_words(path)
    assert negatives("a cat", "nouns", own) == ("a dog",)
    assert negatives("it runs", "verbs", own) == (), "there is no other verb"
    path.write_text(json.dumps({**lists, "nouns": [["cat", "cats"], ["dog"]]}))
    with pytest.raises(UserError, match="nouns must be"):
        read_words(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="nouns must be"):
        read_words(path)
    path.write_text("{")
    with pytest.raises(UserError, match="JSON"):
        read_words(path)
    with pytest.raises(UserError, match="coco or toybox"):
        read_words("french")


def test_what_hummus_alone_reads_changes_no_swap(tmp_path: Path) -> None:
    assert COCO.spellings and COCO.ambiguous
    without = replace(COCO, spellings=(), ambiguous=())
    captions = ["a gray sky", "a grey sky", "a parking lot", "two oranges", "a bit of cake", "a doughnut"]
    for category in CATEGORIES:
        assert swapped_captions(captions, COCO, category, 0) == swapped_captions(captions, without, category, 0)
    content = json.loads((Path(words.__file__).parent / "coco.json").read_text())
    for key, wrong in {"spellings": [["gray"], "grey"], "ambiguous": [["oranges"]]}.items():
        (tmp_path / "words.json").write_text(json.dumps({**content, key: wrong}))
        with pytest.raises(UserError, match=f"words.json: {key}"):
            read_words(tmp_path / "words.json")
