"""Word lists of R-precision-hard and HUMMUS, and captions with one word swapped for another of its category."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.eval.errors import UserError

CATEGORIES = ("nouns", "verbs", "colors", "numbers")
LISTS = ("coco", "toybox")
# A word after one of these is no verb: "a park", "of work". It stands for the tagger of X-LXMERT, which parses.
_BEFORE_NOUNS = frozenset(
    (
        "a",
        "an",
        "the",
        "his",
        "her",
        "its",
        "their",
        "this",
        "that",
        "these",
        "those",
        "some",
        "many",
        "several",
    )
    + ("of", "in", "on", "at", "with", "by", "for", "from", "no")
)
_STARTS_LIKE_A_CONSONANT = ("one", "uni", "use", "eu")


@dataclass(frozen=True)
class WordLists:
    """Words of four categories. A row holds the forms of a word, in the same order in all rows of a category.

    For HUMMUS alone (`diptych.eval.study.vocabulary`): `spellings`, rows of a listed word and what else counts as it;
    `ambiguous`, forms that captions use as other words.
    """

    name: str
    nouns: tuple[tuple[str, ...], ...]
    verbs: tuple[tuple[str, ...], ...]
    colors: tuple[tuple[str, ...], ...]
    numbers: tuple[tuple[str, ...], ...]
    spellings: tuple[tuple[str, ...], ...] = ()
    ambiguous: tuple[str, ...] = ()

    def rows(self, category: str) -> tuple[tuple[str, ...], ...]:
        """The rows of one of CATEGORIES."""
        return getattr(self, category)


@dataclass(frozen=True)
class Swapped:
    """A caption of which one word was swapped: `index` among the captions, the word, and the wrong captions."""

    index: int
    word: str
    negatives: tuple[str, ...]


def read_words(name: str | Path) -> WordLists:
    """The lists "coco" or "toybox", or those of a JSON file of the same form.

    The file has nouns, verbs, colors and numbers: each a list of rows, a row a list of forms; it may have spellings
    and ambiguous. Raises UserError where it cannot be used.
    """
    path = Path(__file__).parent / f"{name}.json" if str(name) in LISTS else Path(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such word lists; give {' or '.join(LISTS)}, or a JSON file like {Path(__file__).parent}/coco.json"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    lists: dict[str, tuple[tuple[str, ...], ...]] = {}
    for category in CATEGORIES:
        rows = content.get(category) if isinstance(content, dict) else None
        if not _are_rows(rows) or len({len(row) for row in rows}) > 1:  # type: ignore[arg-type, union-attr]
            raise UserError(f"{path}: {category} must be a list of lists of words, all of one length")
        lists[category] = _lower(rows)  # type: ignore[arg-type]
    spellings, ambiguous = content.get("spellings", []), content.get("ambiguous", [])
    if not _are_rows(spellings):
        raise UserError(f"{path}: spellings must be a list of lists of words")
    if ambiguous != [] and not _are_rows([ambiguous]):
        raise UserError(f"{path}: ambiguous must be a list of words")
    return WordLists(str(name), **lists, spellings=_lower(spellings), ambiguous=_lower([ambiguous])[0])


def _are_rows(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list) and row and all(isinstance(form, str) and form for form in row) for row in rows
    )


def _lower(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(form.lower() for form in row) for row in rows)


def swapped_captions(
    captions: Sequence[str], words: WordLists, category: str, seed: int, negatives: int = 9, limit: int = 1000
) -> list[Swapped]:
    """R-precision-hard's captions (X-LXMERT, appendix E.1): up to `limit` that hold a word of the category.

    In each, one such word, drawn by the seed, is swapped for `negatives` others of the category, or for all others
    where there are fewer, as :class:`Swaps` does it.
    """
    swaps, number = Swaps(words, category), CATEGORIES.index(category)
    found: list[Swapped] = []
    for index in np.random.default_rng((seed, number)).permutation(len(captions)):
        swap = swaps.of(captions[index], negatives, np.random.default_rng((seed, number, int(index))))
        if swap is not None:
            found.append(Swapped(int(index), *swap))
        if len(found) == limit:
            break
    return sorted(found, key=lambda swapped: swapped.index)


class Swaps:
    """Swaps a word of a category in a caption for others of it.

    The form stays (singular or plural, "riding" for "sitting"), and "a" and "an" follow the new word. A word that two
    categories know ("orange") and a verb's form after an article or a preposition are left alone.
    """

    def __init__(self, words: WordLists, category: str) -> None:
        self._rows, self._verbs = words.rows(category), category == "verbs"
        self._place = {
            form: (row, column)
            for row, forms in reversed(list(enumerate(self._rows)))
            for column, form in enumerate(forms)
        }
        self._elsewhere = {
            form for other in CATEGORIES if other != category for forms in words.rows(other) for form in forms
        }
        # of all nouns the longest first, so that "hot dog" is no dog
        known = sorted({*self._place, *self._elsewhere}, key=lambda form: (-len(form), form))
        self._pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, known)) + r")\b", re.IGNORECASE)

    def of(
        self, caption: str, negatives: int, generator: np.random.Generator
    ) -> tuple[str, tuple[str, ...]] | None:
        """A word of `caption`, drawn by `generator`, and up to `negatives` captions with others in its place; None
        where the caption holds none of the category, or the category no other."""
        if len(self._rows) < 2:
            return None
        matches = [
            match
            for match in self._pattern.finditer(caption)
            if match[0].lower() in self._place
            and match[0].lower() not in self._elsewhere
            and not (self._verbs and _word_before(caption, match.start()) in _BEFORE_NOUNS)
        ]
        if not matches:
            return None
        match = matches[generator.integers(len(matches))]
        row, column = self._place[match[0].lower()]
        others = dict.fromkeys(
            self._rows[other][column]
            for other in generator.permutation(len(self._rows))
            if other != row and self._rows[other][column] != match[0].lower()
        )
        return match[0].lower(), tuple(_swap(caption, match, form) for form in list(others)[:negatives])


def _word_before(caption: str, position: int) -> str:
    before = re.findall(r"[\w']+", caption[:position])
    return before[-1].lower() if before else ""


def _swap(caption: str, match: re.Match, form: str) -> str:
    form = form.capitalize() if match[0][0].isupper() else form
    start = caption[: match.start()]
    article = re.search(r"\b(an?)(\s+)$", start, re.IGNORECASE)
    if article:
        vowel = form[0].lower() in "aeiou" and not form.lower().startswith(_STARTS_LIKE_A_CONSONANT)
        right = article[1][0] + ("n" if vowel else "")
        start = start[: article.start()] + right + article[2]
    return start + form + caption[match.end() :]
