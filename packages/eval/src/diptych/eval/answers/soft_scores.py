"""VQA's soft score: what an answer is worth where ten people answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
