"""What is answered by who reads the question and never sees the picture: the floor beside every figure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from diptych.eval.answers.normalisation import normalise_answer


def answers_from_words(
    training: Iterable[tuple[str, str, Sequence[str]]], asked: Iterable[tuple[str, str]]
) -> list[str]:
    """The answer that most people gave to training questions of the same words; where no training question has these words,
    to those of the same kind; where there is none of that, to all.

    training: (words, kind, people's answers). asked: (words, kind). Of equally frequent answers the first in the order of
    their letters counts. Without any training question answers are empty.
    """
    by_words: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    everything: Counter[str] = Counter()
    for words, kind, answers in training:
        given = Counter(filter(None, map(normalise_answer, answers)))
        by_words[words].update(given)
        by_kind[kind].update(given)
        everything.update(given)
    commonest = {words: _commonest(counts) for words, counts in by_words.items()}
    of_kind = {kind: _commonest(counts) for kind, counts in by_kind.items()}
    of_all = _commonest(everything)
    return [commonest.get(words, of_kind.get(kind, of_all)) for words, kind in asked]


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")
