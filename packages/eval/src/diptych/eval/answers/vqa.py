"""VQA v2's accuracy, as the official script (vqaEval.py) counts it (Goyal et al. 2017, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diptych.eval.answers.questions import (
    DEFAULTS,
    Measuring,
    Question,
    Settings,
    by_kind,
    check_answered,
    units_of,
)
from diptych.eval.answers.soft_scores import answer_scores
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure

NORMALISATION = "VQA v2's, where people's answers differ; else as written"


def measure_vqa(
    predictions: Mapping[str, str],
    questions: Sequence[Question],
    settings: Settings = DEFAULTS,
    each: dict[str, dict[str, float]] | None = None,
) -> list[Figure]:
    """VQA's accuracy, shares 0..1: `vqa.accuracy`, and `vqa.accuracy_KIND` of every kind (VQA's answer types).

    predictions: one answer by question id; those to other questions are left out. each: a dict that takes the score of
    every question, by figure and question id. Intervals draw pictures.

    Raises UserError for a question without prediction, a question that is there twice, and one with fewer than two answers.
    """
    check_answered(predictions, questions, settings)
    scores = np.empty(len(questions))
    for index, question in enumerate(questions):
        if len(question.answers) < 2:
            some = (
                f"{len(question.answers)} answer{'' if question.answers else 's (a test split hides them)'}"
            )
            raise UserError(
                f"{settings.questions}: question {question.question_id} has {some}; VQA's accuracy compares with those of "
                "several people, ten as a rule"
            )
        scores[index] = answer_scores(question.answers).score(predictions[question.question_id])
    measuring = Measuring.of("vqa", questions, settings, NORMALISATION)
    if each is not None:
        ids = [question.question_id for question in questions]
        each[f"{measuring.prefix}.accuracy"] = dict(zip(ids, scores.tolist(), strict=True))
    units, unit = units_of(questions)
    people = sorted({len(question.answers) for question in questions})
    detail = f"{people[0]}{f' to {people[-1]}' if len(people) > 1 else ''} answers a question"
    figures = [measuring.mean("accuracy", scores, units, unit, detail)]
    for kind, indices in by_kind(questions).items():
        chosen = [units[index] for index in indices]
        figures.append(measuring.mean(f"accuracy_{kind}", scores[indices], chosen, unit, detail))
    return figures
