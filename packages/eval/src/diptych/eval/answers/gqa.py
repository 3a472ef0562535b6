"""GQA's metrics, as its official script (eval.py) counts them (Hudson and Manning 2019, section 4.4), without grounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.eval.answers.questions import (
    DEFAULTS,
    Choices,
    Measuring,
    Question,
    Settings,
    by_kind,
    check_answered,
    units_of,
)
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure, interval

NORMALISATION = "none: the same text"
OPEN = "query"
_STRUCTURAL = frozenset({OPEN, "verify", "logical", "choose", "compare"})
# the script's choices for what two things have in common, whatever the file of choices has for them
COMMON = frozenset({"color", "material", "shape"})
_PER = 100  # the script shows chi-square by 100


def structural_type(question: Question) -> str | None:
    """What stands before the dot of GQA's kinds ("query" of "query.attr"); None of other kinds."""
    structural = question.kind.partition(".")[0]
    return structural if structural in _STRUCTURAL else None


def measure_gqa(
    predictions: Mapping[str, str],
    questions: Sequence[Question],
    settings: Settings = DEFAULTS,
    each: dict[str, dict[str, float]] | None = None,
) -> list[Figure]:
    """GQA's figures over the balanced questions, shares 0..1 but for the distribution.

    `gqa.accuracy`; `gqa.accuracy_open` (structural type query) and `gqa.accuracy_binary` (any other);
    `gqa.consistency`, the accuracy on the questions that a rightly answered one entails, mean over such;
    `gqa.validity` and `gqa.plausibility`, shares of answers among the question's choices; `gqa.distribution`, chi-square of
    answers by true ones within each group, weighted by the groups' sizes, by 100, less being better; and accuracy
    per kind: `gqa.accuracy_structural_TYPE` and `gqa.accuracy_semantic_TYPE`, or `gqa.accuracy_KIND` of other kinds.

    What the questions lack the fields for has no value but a reason. predictions: by question id; those to other questions
    are left out. Only consistency needs those to questions that are not balanced. each: as `measure_vqa`'s, accuracy and
    consistency. Intervals draw pictures.

    Raises UserError for a balanced question without prediction, a question that is there twice, and one that has not
    exactly one answer.
    """
    balanced = [question for question in questions if question.balanced]
    if questions and not balanced:
        raise UserError(
            f"{settings.questions}: no question is balanced, and GQA measures those; give one of the balanced files"
        )
    check_answered(predictions, balanced, settings)
    for question in questions:
        if len(question.answers) != 1:
            raise UserError(
                f"{settings.questions}: question {question.question_id} has {len(question.answers)} answers; GQA compares "
                "with one"
            )
    right = np.array(
        [predictions[question.question_id] == question.answers[0] for question in balanced], np.float64
    )
    measuring = Measuring.of("gqa", balanced, settings, NORMALISATION)
    units, unit = units_of(balanced)
    if each is not None:
        ids = [question.question_id for question in balanced]
        each[f"{measuring.prefix}.accuracy"] = dict(zip(ids, right.tolist(), strict=True))
    chosen = _Chosen(measuring, balanced, units, unit)
    return [
        chosen.mean("accuracy", right, range(len(balanced))),
        *_binary_and_open(chosen, right),
        _consistency(chosen, predictions, questions, right, each),
        *_choices(chosen, predictions),
        _distribution(chosen, predictions),
        *_kinds(chosen, right),
    ]


@dataclass(frozen=True)
class _Chosen:
    """The balanced questions, and what each is drawn with for intervals."""

    measuring: Measuring
    questions: list[Question]
    units: list[str]
    unit: str

    def mean(
        self, name: str, values: np.ndarray, indices: Sequence[int], detail: str = "", reason: str = ""
    ) -> Figure:
        """The mean of values[indices], which are of the questions with these indices."""
        units = [self.units[index] for index in indices]
        return self.measuring.mean(name, values[list(indices)], units, self.unit, detail, reason)

    def without(self, name: str, reason: str) -> Figure:
        return self.measuring.without(name, reason, len(self.questions))


def _binary_and_open(chosen: _Chosen, right: np.ndarray) -> list[Figure]:
    types = [structural_type(question) for question in chosen.questions]
    if None in types:
        odd = chosen.questions[types.index(None)]
        reason = (
            f"kinds are not GQA's: question {odd.question_id} of {chosen.measuring.settings.questions} is of the kind "
            f"'{odd.kind}', and what stands before a dot has to be one of {', '.join(sorted(_STRUCTURAL))}"
        )
        return [chosen.without(name, reason) for name in ("accuracy_binary", "accuracy_open")]
    return [
        chosen.mean(
            name,
            right,
            [index for index, structural in enumerate(types) if (structural == OPEN) == is_open],
            reason=f"no question is {name.removeprefix('accuracy_')}",
        )
        for name, is_open in (("accuracy_binary", False), ("accuracy_open", True))
    ]


def _consistency(
    chosen: _Chosen,
    predictions: Mapping[str, str],
    questions: Sequence[Question],
    right: np.ndarray,
    each: dict[str, dict[str, float]] | None,
) -> Figure:
    """Over the rightly answered questions that entail others: the share of those that are answered rightly."""
    name, settings = "consistency", chosen.measuring.settings
    gold = {question.question_id: question.answers[0] for question in questions}
    entailed = [
        [other for other in question.entailed if other != question.question_id]
        for question in chosen.questions
    ]
    if not any(entailed):
        return chosen.without(name, f"no question of {settings.questions} entails others")
    for known, where, mend in (
        (
            gold,
            settings.questions,
            "measure on GQA's file of all questions (..._all_questions.json) instead of the balanced ones",
        ),
        (predictions, settings.predictions, "answer all questions instead of the balanced ones"),
    ):
        lacking = [
            (other, question.question_id)
            for question, others in zip(chosen.questions, entailed, strict=True)
            for other in others
            if other not in known
        ]
        if lacking:
            count = len({other for other, _ in lacking})
            what = "question" if known is gold else "answer to question"
            return chosen.without(
                name,
                f"{where} has no {what} {lacking[0][0]}, which question {lacking[0][1]} entails (nor {count - 1} others); "
                f"{mend}",
            )
    indices = [index for index, others in enumerate(entailed) if others and right[index]]
    values = np.zeros(len(entailed))
    for index in indices:
        others = entailed[index]
        values[index] = sum(predictions[other] == gold[other] for other in others) / len(others)
    if each is not None:
        each[f"{chosen.measuring.prefix}.{name}"] = {
            chosen.questions[index].question_id: float(values[index]) for index in indices
        }
    return chosen.mean(
        name,
        values,
        indices,
        f"rightly answered questions, of {sum(map(bool, entailed))} that entail others",
        "no question that entails others is answered rightly",
    )


def _choices(chosen: _Chosen, predictions: Mapping[str, str]) -> list[Figure]:
    known: list[tuple[int, Choices]] = [
        (index, question.choices) for index, question in enumerate(chosen.questions) if question.choices
    ]
    if not known:
        reason = f"{chosen.measuring.settings.questions} has no choices; GQA has them for val (val_choices.json), not for testdev"
        return [chosen.without(name, reason) for name in ("validity", "plausibility")]
    indices = [index for index, _ in known]
    detail = "" if len(known) == len(chosen.questions) else f"of the {len(known)} questions that have choices"
    figures = []
    for name in ("validity", "plausibility"):
        values = np.zeros(len(chosen.questions))
        for index, choices in known:
            among = choices.valid if name == "validity" else choices.plausible
            values[index] = predictions[chosen.questions[index].question_id] in among
        figures.append(chosen.mean(name, values, indices, detail))
    return figures


def _distribution(chosen: _Chosen, predictions: Mapping[str, str]) -> Figure:
    """Chi-square of how often each true answer of a group is given, by how often it is true.

    Its interval is that of the resamples around their own mean, laid around the value: a resample adds noise to every
    square, which moves them all up.
    """
    name, measuring = "distribution", chosen.measuring
    members = [index for index, question in enumerate(chosen.questions) if question.group is not None]
    if not members:
        return chosen.without(
            name, f"no question of {measuring.settings.questions} has a group (groups.global)"
        )
    cells: dict[tuple[str, str], int] = {}
    groups: dict[str, int] = {}
    group_of_cell: list[int] = []
    for index in members:
        question = chosen.questions[index]
        key = (str(question.group), question.answers[0])
        if key not in cells:
            cells[key] = len(cells)
            group_of_cell.append(groups.setdefault(key[0], len(groups)))
    none = len(cells)  # where answers go that are true of no question of the group
    true, given = np.empty(len(members), np.int64), np.empty(len(members), np.int64)
    for place, index in enumerate(members):
        question = chosen.questions[index]
        true[place] = cells[str(question.group), question.answers[0]]
        given[place] = cells.get((str(question.group), predictions[question.question_id]), none)
    numbers: dict[str, int] = {}
    units = np.array([numbers.setdefault(chosen.units[index], len(numbers)) for index in members])

    def statistic(weights: np.ndarray) -> float:
        """weights [members]: how often each question counts."""
        expected = np.bincount(true, weights, none + 1)[:none]
        observed = np.bincount(given, weights, none + 1)[:none]
        squares = (observed - expected) ** 2 / np.maximum(expected, 1) * (expected > 0)
        sizes = np.bincount(group_of_cell, expected)
        return float(np.bincount(group_of_cell, squares) @ sizes / sizes.sum() / _PER)

    settings = measuring.settings
    value = statistic(np.ones(len(members)))
    generator = np.random.default_rng((settings.seed, len(numbers)))
    drawn = np.empty(settings.resamples)
    for resample in range(settings.resamples):
        times = np.bincount(generator.integers(0, len(numbers), len(numbers)), minlength=len(numbers))
        drawn[resample] = statistic(times[units].astype(np.float64))
    low, high = interval(drawn - drawn.mean() + value)
    return Figure(
        f"{measuring.prefix}.{name}",
        value,
        len(members),
        max(0.0, low),
        high,
        seed=settings.seed,
        detail=f"{len(groups)} groups; less is better, and it grows with the number of questions; interval over "
        f"{len(numbers)} {chosen.unit}",
        **measuring.facts,
    )


def _kinds(chosen: _Chosen, right: np.ndarray) -> list[Figure]:
    """Accuracy by structural and by semantic type where kinds are GQA's, else by kind."""
    of = chosen.questions
    typed = [question for question in of if structural_type(question)]
    parts = {question.question_id: question.kind.partition(".") for question in typed}
    structural = {question_id: first for question_id, (first, _, _) in parts.items()}
    semantic = {question_id: second for question_id, (_, _, second) in parts.items() if second}
    other = {question.question_id: question.kind for question in of if not structural_type(question)}
    return [
        chosen.mean(f"accuracy_{label}{kind}", right, indices)
        for label, kinds in (("structural_", structural), ("semantic_", semantic), ("", other))
        for kind, indices in by_kind(of, kinds).items()
    ]
