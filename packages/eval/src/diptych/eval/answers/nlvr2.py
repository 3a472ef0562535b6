"""NLVR2's accuracy and consistency, as its official script (metrics.py) counts them (Suhr et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diptych.eval.answers.questions import DEFAULTS, Measuring, Question, Settings, check_answered
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure

NORMALISATION = "none but case: true or false"
_TRUTH = {"true": True, "false": False}


def truth(text: str) -> bool | None:
    """True or False of "True" or "false", in any case; None of anything else."""
    return _TRUTH.get(text.strip().lower())


def statement_group(question: Question) -> str | None:
    """What a statement's pairs of pictures have in common; None where nothing says so.

    Of NLVR2's identifiers (split-set-pair-sentence) that is all but the third field, which is the pair; else the group.
    """
    fields = question.question_id.split("-")
    if len(fields) == 4 and all(fields):
        return "-".join((*fields[:2], "", fields[3]))
    return question.group


def sentence_of(question: Question) -> str:
    """What a statement is drawn with for intervals, as pairs of one sentence are not independent: :func:`statement_group`, or itself
    where nothing says so."""
    return statement_group(question) or question.question_id


def measure_nlvr2(
    predictions: Mapping[str, bool],
    statements: Sequence[Question],
    settings: Settings = DEFAULTS,
    each: dict[str, dict[str, float]] | None = None,
) -> list[Figure]:
    """`nlvr2.accuracy`, and `nlvr2.consistency`: the share of sentences that are judged rightly with all their pairs.

    predictions: by statement id; those of other statements are left out. each: as `measure_vqa`'s. Intervals draw
    sentences with all their pairs; consistency's n are sentences.

    Raises UserError for a statement without prediction, one that is there twice, and one that is not true or false.
    """
    check_answered(predictions, statements, settings)
    right = np.empty(len(statements))
    for index, statement in enumerate(statements):
        label = truth(statement.answers[0]) if len(statement.answers) == 1 else None
        if label is None:
            said = ", ".join(statement.answers[:3]) or "no answer"
            raise UserError(
                f"{settings.questions}: statement {statement.question_id} has {said}; a statement has one answer, "
                "True or False"
            )
        right[index] = predictions[statement.question_id] == label
    measuring = Measuring.of("nlvr2", statements, settings, NORMALISATION)
    if each is not None:
        ids = [statement.question_id for statement in statements]
        each[f"{measuring.prefix}.accuracy"] = dict(zip(ids, right.tolist(), strict=True))
    groups = [statement_group(statement) for statement in statements]
    if None in groups:
        alone = statements[groups.index(None)].question_id
        reason = (
            f"nothing says which statements are one sentence: {settings.questions}: {alone} is no identifier of NLVR2's "
            "(split-set-pair-sentence), and it has no group"
        )
        own = [statement.question_id for statement in statements]
        return [
            measuring.mean("accuracy", right, own, "statements"),
            measuring.without("consistency", reason, len(statements)),
        ]
    sentences: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        sentences.setdefault(str(group), []).append(index)
    consistent = [float(right[indices].all()) for indices in sentences.values()]
    single = sum(len(indices) == 1 for indices in sentences.values())
    detail = f"sentences of {len(statements)} statements" + (
        f", {single} with one pair alone" if single else ""
    )
    return [
        measuring.mean("accuracy", right, [str(group) for group in groups], "sentences"),
        measuring.mean("consistency", consistent, list(sentences), "sentences", detail),
    ]
