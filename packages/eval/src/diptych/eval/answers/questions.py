"""Questions with their answers, as metrics take them, and what the metrics share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diptych.eval.errors import UserError
from diptych.eval.figures import Figure, not_run, ratio_figure, sha256_of_json


@dataclass(frozen=True)
class Choices:
    """GQA's: answers that are in the question's scope, and answers that are likely in the world."""

    valid: frozenset[str]
    plausible: frozenset[str]


@dataclass(frozen=True)
class Question:
    """A question, or a statement about two pictures.

    answers: of people, or the one that is true. kind: VQA's answer type, GQA's "structural.semantic", or any word.
    image_ids: empty where unknown. group: GQA's global one. entailed: ids of questions that whoever answers this one rightly
    can answer; its own may be among them. balanced: whether GQA measures accuracy on it.
    """

    question_id: str
    answers: tuple[str, ...]
    kind: str = ""
    image_ids: tuple[str, ...] = ()
    group: str | None = None
    entailed: tuple[str, ...] = ()
    choices: Choices | None = None
    balanced: bool = True


@dataclass(frozen=True)
class Settings:
    """How answers are measured.

    split: the split's name, for the records. prefix: of the figures' names; None is the metric's own.
    predictions, questions: what messages call the two.
    """

    split: str | None = None
    prefix: str | None = None
    seed: int = 0
    resamples: int = 1000
    predictions: str = "the predictions"
    questions: str = "the questions"


DEFAULTS = Settings()


def kind_name(kind: str) -> str:
    """A kind as names of figures have it: "yes/no" is yes_no."""
    return re.sub(r"\W+", "_", kind.lower()).strip("_") or "unnamed"


def check_answered(predictions: Collection[str], questions: Sequence[Question], settings: Settings) -> None:
    """Raise UserError where there is no question, a question is there twice, or one has no prediction."""
    if not questions:
        raise UserError(f"{settings.questions}: there is no question to measure")
    ids = Counter(question.question_id for question in questions)
    if len(ids) < len(questions):
        twice = ids.most_common(1)[0][0]
        raise UserError(f"{settings.questions}: question {twice} is there twice; ids must be unique")
    missing = [question.question_id for question in questions if question.question_id not in predictions]
    if missing:
        # nothing fits: the two files are of different questions, or spell their ids in another way
        other = (
            f"; its own first: {next(iter(predictions))}" if predictions and len(missing) == len(ids) else ""
        )
        raise UserError(
            f"{settings.predictions}: no answer to {len(missing)} of {len(questions)} questions of {settings.questions} "
            f"(first: {missing[0]}{other}); answer every question"
        )


@dataclass(frozen=True)
class Measuring:
    """What all figures of one metric have in common."""

    prefix: str
    settings: Settings
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, prefix: str, questions: Sequence[Question], settings: Settings, normalisation: str
    ) -> Measuring:
        """The metric's prefix unless the settings have one; the hash of the answers, the split, the normalisation."""
        reference = {question.question_id: question.answers for question in questions}
        facts = {
            "normalisation": normalisation,
            "split": settings.split,
            "reference_sha256": sha256_of_json(reference),
        }
        return cls(settings.prefix or prefix, settings, facts)

    def mean(
        self,
        name: str,
        values: Sequence[float] | np.ndarray,
        units: Sequence[str],
        unit: str,
        detail: str = "",
        reason: str = "",
    ) -> Figure:
        """The mean of values 0..1, one per question, with an interval over units that are drawn as wholes.

        units: the unit of each value, such as its picture: questions about one picture are not independent.
        reason: why there is no value, where there are no values.
        """
        if not len(values):
            return self.without(name, reason)
        numbers: dict[str, int] = {}
        places = [numbers.setdefault(name_of_unit, len(numbers)) for name_of_unit in units]
        rows = np.stack([np.bincount(places, np.asarray(values, np.float64)), np.bincount(places)], 1)
        figure = ratio_figure(
            f"{self.prefix}.{name}",
            rows,
            lambda means: means[:, 0] / means[:, 1],
            self.settings.seed,
            self.settings.resamples,
            scale=100,
            detail=f"{detail}{'; ' if detail else ''}interval over {len(numbers)} {unit}",
            **self.facts,
        )
        return replace(figure, n=len(values))

    def without(self, name: str, reason: str, n: int = 0) -> Figure:
        """A figure without a value, and why."""
        return replace(not_run(f"{self.prefix}.{name}", reason, n), **self.facts)


def units_of(questions: Sequence[Question]) -> tuple[list[str], str]:
    """What each question is drawn with for intervals, and its name: its picture, or itself where one has none."""
    if all(question.image_ids for question in questions):
        return [" ".join(question.image_ids) for question in questions], "pictures"
    return [question.question_id for question in questions], "questions"


def by_kind(questions: Sequence[Question], kinds: Mapping[str, str] | None = None) -> dict[str, list[int]]:
    """Indices of questions by the name of their kind, sorted; kinds: other kinds by question id."""
    found: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        kind = question.kind if kinds is None else kinds.get(question.question_id)
        if kind:
            found.setdefault(kind_name(kind), []).append(index)
    return dict(sorted(found.items()))
