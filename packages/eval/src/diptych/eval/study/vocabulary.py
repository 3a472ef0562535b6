"""HUMMUS: which word of a caption is hidden, and which typed words are that word.

Words match on their lemma, as in X-LXMERT (6.1). The hidden word is always one of a short list, so no lemmatiser has to
guess: all inflected forms of a listed word are written down, from rules and from the list, and a typed word matches if it
is one of them. (A general one without downloads, simplemma 2.0, leaves "sitting" and "hitting" as they are.)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from diptych.eval.errors import UserError
from diptych.eval.text_files import read_json
from diptych.eval.words import read_words

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_NOT_CATEGORIES = ("irregular", "ambiguous")
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Vocabulary:
    """The words that HUMMUS hides.

    forms: per category ("noun", "verb", "colour", ...) and word, all spellings that count as that word.
    hidden: per spelling the category and the word it is a form of, only spellings that belong to one category.
    telling: per category and word, as `normal_answer` has them, the spellings that would give it away elsewhere in a caption:
        its own, and those of words that share one with it ("skiing" beside the noun "ski").
    longest: most words in one spelling ("traffic light": 2).
    """

    forms: Mapping[str, Mapping[str, frozenset[str]]]
    hidden: Mapping[str, tuple[str, str]]
    telling: Mapping[tuple[str, str], frozenset[str]]
    longest: int


@dataclass(frozen=True)
class Mask:
    """A word to hide: caption[start:end] is a form of `word`, one of the words of `category`."""

    category: str
    word: str
    start: int
    end: int


def read_vocabulary(path: Path | None = None) -> Vocabulary:
    """Words from a JSON file; None takes nouns, verbs and colours of R-precision-hard's list for COCO
    (`diptych.eval.words`: 80, 64 and 10).

    The file holds {"noun": [...], "verb": [...], "colour": [...], ...}; optional are "irregular": {word: [forms]}
    for what the rules do not make, and "ambiguous": [forms] that are never hidden. Words of "verb" are inflected as
    verbs and hidden only where inflected ("sitting", not "park", which may be a place: no tagger decides);
    "colour" is not inflected; all others take plurals.
    """
    return _coco_vocabulary() if path is None else _vocabulary_of_file(path)


def _coco_vocabulary() -> Vocabulary:
    lists = read_words("coco")
    spellings = {word: others for word, *others in lists.spellings}
    categories = {"noun": lists.nouns, "verb": lists.verbs, "colour": lists.colors}
    rows = {
        category: [[*forms, *spellings.get(forms[0], [])] for forms in words]
        for category, words in categories.items()
    }
    return _vocabulary(rows, lists.ambiguous)


def _vocabulary_of_file(source: Path) -> Vocabulary:
    content = read_json(source, '{"noun": [...], "verb": [...], "colour": [...]}')
    if not isinstance(content, dict):
        raise UserError(f'{source}: wanted {{"noun": [...], "verb": [...], "colour": [...]}}')
    irregular, ambiguous = content.get("irregular", {}), content.get("ambiguous", [])
    if not isinstance(irregular, dict) or not all(_is_words(value) for value in irregular.values()):
        raise UserError(f'{source}: "irregular" has to be an object of lists of words')
    if not _is_words(ambiguous):
        raise UserError(f'{source}: "ambiguous" has to be a list of words')
    rows: dict[str, list[list[str]]] = {}
    for category, words in content.items():
        if category in _NOT_CATEGORIES:
            continue
        if not _is_words(words):
            raise UserError(f'{source}: "{category}" has to be a list of words')
        rows[category] = [[word, *irregular.get(word, [])] for word in (entry.lower() for entry in words)]
    if not any(rows.values()):
        raise UserError(f"{source}: holds no words")
    vocabulary = _vocabulary(rows, ambiguous)
    if not vocabulary.hidden:
        raise UserError(
            f"{source}: holds no word that may be hidden: each is ambiguous or of two categories; add others"
        )
    return vocabulary


def _vocabulary(rows: Mapping[str, Sequence[Sequence[str]]], ambiguous: Iterable[str]) -> Vocabulary:
    """rows: per category the words, each followed by the forms that the rules may not make."""
    forms: dict[str, dict[str, frozenset[str]]] = {}
    hidden: dict[str, tuple[str, str]] = {}
    shared = set(ambiguous)
    for category, words in rows.items():
        forms[category] = {
            word: frozenset({word, *_regular_forms(word, category), *others}) for word, *others in words
        }
        for word, spellings in forms[category].items():
            for spelling in spellings - {word} if category == "verb" else spellings:
                if spelling in hidden:
                    shared.add(spelling)
                hidden[spelling] = (category, word)
    for spelling in shared:
        hidden.pop(spelling, None)
    longest = max(
        len(spelling.split()) for words in forms.values() for each in words.values() for spelling in each
    )
    return Vocabulary(forms, hidden, _telling(forms), longest)


def _telling(forms: Mapping[str, Mapping[str, frozenset[str]]]) -> dict[tuple[str, str], frozenset[str]]:
    normal = {
        (category, word): frozenset(map(normal_answer, spellings))
        for category, words in forms.items()
        for word, spellings in words.items()
    }
    words_of: dict[str, list[tuple[str, str]]] = {}
    for key, spellings in normal.items():
        for spelling in spellings:
            words_of.setdefault(spelling, []).append(key)
    return {
        key: frozenset().union(*(normal[other] for spelling in spellings for other in words_of[spelling]))
        for key, spellings in normal.items()
    }


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def _regular_forms(word: str, category: str) -> set[str]:
    """All spellings that the rules allow, right ones and harmless ones ("siting" beside "sitting")."""
    if category in ("colour", "color"):
        return set()
    forms = {word + "s"}
    consonant_y = word.endswith("y") and word[-2:-1] not in _VOWELS
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    if consonant_y:
        forms.add(word[:-1] + "ies")
    if category != "verb":
        if word.endswith(("f", "fe")):
            forms.add(word.rstrip("e")[:-1] + "ves")
        return forms
    stems = {word}
    if word.endswith("e"):
        stems = {word[:-1]}
    elif word[-1] not in _VOWELS + "wxy" and word[-2:-1] in list(_VOWELS):
        stems.add(word + word[-1])
    for stem in stems:
        forms |= {stem + "ing", stem + "ed"}
    if word.endswith("ie"):
        forms.add(word[:-2] + "ying")
    if consonant_y:
        forms.add(word[:-1] + "ied")
    return forms


def find_masks(caption: str, vocabulary: Vocabulary) -> list[Mask]:
    """Words of a caption that may be hidden, in their order; the longest entry wins ("hot dog" over "dog").

    A word that the caption gives away, by another form or a word that shares one, is left out.
    """
    tokens = [(found.group().lower().replace("\u2019", "'"), found) for found in _WORD.finditer(caption)]
    # every phrase that may be a spelling, as it is compared
    phrases = [
        (
            tokens[first][1].start(),
            tokens[last][1].end(),
            normal_answer(" ".join(token for token, _ in tokens[first : last + 1])),
        )
        for first in range(len(tokens))
        for last in range(first, min(first + vocabulary.longest, len(tokens)))
    ]
    masks, position = [], 0
    while position < len(tokens):
        for length in range(min(vocabulary.longest, len(tokens) - position), 0, -1):
            phrase = " ".join(token for token, _ in tokens[position : position + length])
            if phrase in vocabulary.hidden:
                start, end = tokens[position][1].start(), tokens[position + length - 1][1].end()
                masks.append(Mask(*vocabulary.hidden[phrase], start, end))
                position += length - 1
                break
        position += 1
    return [
        mask
        for mask in masks
        if not any(
            phrase in vocabulary.telling[mask.category, mask.word]
            and (end <= mask.start or start >= mask.end)
            for start, end, phrase in phrases
        )
    ]


@lru_cache(maxsize=100_000)
def normal_answer(answer: str) -> str:
    """A typed word in the form that is compared: lower case, no article, no spaces, hyphens or outer signs."""
    plain = unicodedata.normalize("NFKC", answer).casefold().replace("\u2019", "'").strip(" \t.,;:!?\"'_-")
    plain = re.sub(r"^(?:a|an|the)\s+", "", plain)
    return re.sub(r"[\s-]+", "", plain)


def is_match(answer: str, accepted: frozenset[str] | tuple[str, ...]) -> bool:
    """Whether a typed word is one of the accepted spellings ("hotdogs" is "hot dog")."""
    return normal_answer(answer) in {normal_answer(spelling) for spelling in accepted}
