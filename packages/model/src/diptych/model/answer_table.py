"""The answer table: the answers that an answer head chooses among, in its order. Kept as ``answers.json``, a list of text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych.model.errors import UserError

ANSWERS_FILE = "answers.json"


class AnswerTable:
    """Answers as people say them after VQA's normalisation (lower case, digits, no articles), each once.

    Attributes:
        answers: row i of the answer head is ``answers[i]``.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        """Raises UserError for no answers, what is no text, or one that is there twice."""
        if not answers:
            raise UserError("the answer table has no answer")
        for answer, count in Counter(answers).items():
            if not isinstance(answer, str):
                raise UserError(f"the answer table has {answer!r}, which is no text")
            if count > 1:
                raise UserError(f"the answer table has {answer!r} {count} times; each answer once")
        self.answers = tuple(answers)
        self._numbers = {answer: number for number, answer in enumerate(self.answers)}

    def __len__(self) -> int:
        return len(self.answers)

    def shares(self, answers: Sequence[str]) -> dict[int, float]:
        """Return each known answer's share of those that people gave to one question that are in the table, by its row:
        in (0, 1], adding up to 1; empty where none is known."""
        # here: who only reads a table needs no metrics
        from diptych.eval.answers.normalisation import normalise_answer

        normal = map(normalise_answer, answers)
        known = Counter(self._numbers[answer] for answer in normal if answer in self._numbers)
        total = sum(known.values())
        return {number: count / total for number, count in known.items()}

    def scores(self, answers: Sequence[str]) -> dict[int, float]:
        """Return what each known answer is worth by VQA's accuracy, by its row: in (0, 1]. Where one person or file gave the
        one true answer, that is worth 1."""
        from diptych.eval.answers.normalisation import normalise_answer
        from diptych.eval.answers.soft_scores import answer_scores

        scores = answer_scores(answers).scores if len(answers) > 1 else dict.fromkeys(answers, 1.0)
        normal = {normalise_answer(answer): score for answer, score in scores.items()}
        return {self._numbers[answer]: score for answer, score in normal.items() if answer in self._numbers}

    def save(self, folder: Path) -> None:
        """Write ``answers.json`` into ``folder``."""
        (folder / ANSWERS_FILE).write_text(
            json.dumps(self.answers, ensure_ascii=False, indent=0) + "\n", "utf-8"
        )


def build_answer_table(answers: Iterable[Sequence[str]], min_count: int) -> AnswerTable:
    """Take the answers that are the most frequent one of at least ``min_count`` questions, the most frequent first.

    Args:
        answers: those that people gave, per question; of equally frequent ones the first counts.

    Raises:
        UserError: there is none.
    """
    from diptych.eval.answers.normalisation import normalise_answer

    counts: Counter[str] = Counter()
    for given in answers:
        normal = Counter(filter(None, map(normalise_answer, given)))
        if normal:
            counts[max(normal, key=lambda answer: normal[answer])] += 1
    kept = sorted(answer for answer, count in counts.items() if count >= min_count)
    if not kept:
        raise UserError(
            f"no answer is that of {min_count} training questions; lower the least count of answers"
        )
    return AnswerTable(sorted(kept, key=lambda answer: -counts[answer]))


def load_answer_table(folder: Path, rows: int) -> AnswerTable | None:
    """Read ``answers.json`` of a model directory whose answer head has so many ``rows``; None where it has no head.

    Raises:
        UserError: the file is missing, no list of different texts, or of another length.
    """
    if rows == 0:
        return None
    file = folder / ANSWERS_FILE
    try:
        written = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a model with an answer head needs its answer table") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(written, list):
        raise UserError(f"{file}: holds a {type(written).__name__}, not a list of answers")
    if len(written) != rows:
        raise UserError(
            f"{file}: {len(written)} answers, but the answer head has {rows}; use the table that it was trained with"
        )
    try:
        return AnswerTable(written)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
