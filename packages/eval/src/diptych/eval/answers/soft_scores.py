"""VQA's soft score: what an answer is worth where ten people answered, one at a time and for a whole answer table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.eval.answers.normalisation import normalise_answer, plain_answer

FULL = 3  # so many others who say the same make an answer right


@dataclass(frozen=True)
class AnswerScores:
    """What answers to one question are worth.

    scores: 0 < score <= 1 by answer as it is compared; all others are worth 0.
    normalised: whether answers are compared as `normalise_answer` has them, or as `plain_answer` has.
    """

    scores: dict[str, float]
    normalised: bool

    def score(self, answer: str) -> float:
        """What the answer is worth, 0..1."""
        return self.scores.get(normalise_answer(answer) if self.normalised else plain_answer(answer), 0.0)


def answer_scores(answers: Sequence[str]) -> AnswerScores:
    """What people's answers to one question make answers worth, by VQA v2's official script.

    A score is the mean of min(n / 3, 1) over all ways to leave one person out, n being how many of the others gave that
    answer: with ten people 0.3, 0.6, 0.9 and 1 for 1, 2, 3 and more. Answers are normalised only where people's differ, as
    the script does. Raises ValueError for fewer than two people: there would be nobody left to compare with.
    """
    if len(answers) < 2:
        raise ValueError(f"{len(answers)} answers; leaving one out needs two or more")
    compared = [plain_answer(answer) for answer in answers]
    normalised = len(set(compared)) > 1
    if normalised:
        compared = [normalise_answer(answer) for answer in compared]
    people = len(compared)
    scores = {
        # of those who are left out, `count` are among the ones that gave this answer
        answer: (count * min(count - 1, FULL) + (people - count) * min(count, FULL)) / (FULL * people)
        for answer, count in Counter(compared).items()
    }
    return AnswerScores({answer: score for answer, score in scores.items() if score}, normalised)


def soft_score(answer: str, answers: Sequence[str]) -> float:
    """What an answer is worth, 0..1, where people gave `answers`. Raises ValueError as `answer_scores` does."""
    return answer_scores(answers).score(answer)


@dataclass(frozen=True)
class SoftLabels:
    """The scores above 0 of an answer table's entries, for many questions; sorted by question, then entry.

    questions, entries: int64 [m], indices of the question and of the table's entry. scores: float32 [m], 0 < score <= 1.
    shape: how many questions and entries there are.
    """

    questions: np.ndarray
    entries: np.ndarray
    scores: np.ndarray
    shape: tuple[int, int]

    def score(self, predicted: np.ndarray) -> np.ndarray:
        """What the predicted entries, int [q], one per question, are worth: float32 [q].

        Raises ValueError for another number of them, or for an entry that the table has not.
        """
        predicted = np.asarray(predicted, np.int64)
        if predicted.shape != self.shape[:1]:
            raise ValueError(f"{predicted.shape} predictions for {self.shape[0]} questions")
        if len(predicted) and not 0 <= predicted.min() <= predicted.max() < self.shape[1]:
            raise ValueError(f"predictions are entries 0 .. {self.shape[1] - 1}")
        known = self.questions * self.shape[1] + self.entries
        wanted = np.arange(self.shape[0]) * self.shape[1] + predicted
        if not len(known):
            return np.zeros(len(wanted), np.float32)
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[places] == wanted, self.scores[places], np.float32(0))

    def dense(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Targets float32 [len(rows), entries] of some questions, by index; of all without `rows`."""
        rows = np.arange(self.shape[0]) if rows is None else np.asarray(rows, np.int64)
        starts = np.searchsorted(self.questions, rows)
        counts = np.searchsorted(self.questions, rows, side="right") - starts
        members = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        targets = np.zeros((len(rows), self.shape[1]), np.float32)
        targets[np.repeat(np.arange(len(rows)), counts), self.entries[members]] = self.scores[members]
        return targets


def soft_labels(answers: Sequence[Sequence[str]], table: Sequence[str]) -> SoftLabels:
    """The scores of an answer table's entries, of people's answers to each question.

    Equal to `soft_score` of every entry and question; an entry that is spelled otherwise than ten people who agree is worth
    0, as in the official script. Raises ValueError as `answer_scores` does, with the question's index.
    """
    plain: dict[str, list[int]] = {}
    normalised: dict[str, list[int]] = {}
    for entry, answer in enumerate(table):
        plain.setdefault(plain_answer(answer), []).append(entry)
        normalised.setdefault(normalise_answer(answer), []).append(entry)
    found: list[tuple[int, int, float]] = []
    for question, several in enumerate(answers):
        try:
            worth = answer_scores(several)
        except ValueError as error:
            raise ValueError(f"question {question}: {error}") from None
        found += sorted(
            (question, entry, score)
            for answer, score in worth.scores.items()
            for entry in (normalised if worth.normalised else plain).get(answer, ())
        )
    columns = np.array(found, np.float64).reshape(-1, 3)
    return SoftLabels(
        columns[:, 0].astype(np.int64),
        columns[:, 1].astype(np.int64),
        columns[:, 2].astype(np.float32),
        (len(answers), len(table)),
    )
