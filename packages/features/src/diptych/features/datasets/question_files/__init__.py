"""Question files as people have them: VQA v2, GQA, Visual Genome, NLVR2, LXMERT's, and lists of one's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from diptych.features.datasets.bad_rows import BadRow, BadRows
from diptych.features.datasets.keys import image_key
from diptych.features.datasets.question_files.config import QuestionFilesConfig, QuestionSource
from diptych.features.datasets.question_files.forms import READERS, Draft
from diptych.features.errors import UserError
from diptych.features.ids import read_id
from diptych.features.text_files import whole_characters

__all__ = ["QuestionFilesConfig", "QuestionSource", "read_question_files"]

_NAMED = 5  # pictures that a message names


def read_question_files(
    sources: Sequence[QuestionSource], pictures: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The questions of files as rows for `write_questions`, in the files' order.

    pictures: image_id to split of the pictures there are, as the manifest has them. Files may name pictures by number
    (139), by COCO's file names (COCO_train2014_000000000139) or by file name.

    Rows that cannot be used are left out and told with their ids; more than one in a hundred of a file
    (`bad_rows.MAX_BAD_SHARE`) refuse it. So do questions about pictures that are not there, above `missing_share`.
    Raises UserError for these, for a file that is missing or of another form, and for an id that two files have.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, QuestionSource] = {}
    for source in sources:
        bad = BadRows(source.questions, "questions")
        tell = [bad]
        missing: dict[str, str] = {}
        for draft in READERS[source.form](source, tell):
            bad.total += 1
            try:
                row = _row(draft, source, pictures, missing)
                if row is None:
                    continue
                before = first.get(row["question_id"])
                if before is source:
                    raise BadRow("whose id occurs before", row["question_id"])
                if before is not None:
                    raise UserError(
                        f"{before.questions} and {source.questions}: both have the question {row['question_id']}; "
                        "leave one of the files out, or give its questions other ids"
                    )
                first[row["question_id"]] = source
                rows.append(row)
            except BadRow as problem:
                bad.add(draft.question_id, problem)
        _check(source, tell, missing)
    return rows


def _row(
    draft: Draft, source: QuestionSource, pictures: Mapping[str, str], missing: dict[str, str]
) -> dict[str, Any] | None:
    """The row of a draft; None, noted in `missing`, where a picture is not there. Raises BadRow."""
    if draft.problem is not None:
        raise draft.problem
    question_id = _id(draft.question_id, "id")
    if not 1 <= len(draft.images) <= 2:
        raise BadRow("that have neither one image nor two", draft.images)
    row = {
        "question_id": question_id,
        "question": _text(draft.question, "question").strip(),
        "answers": _answers(draft.answers),
        "kind": _text(draft.kind, "kind").strip(),
        "group": None if draft.group is None else _text(draft.group, "group"),
        "entailed": _entailed(draft.entailed),
        "choices": _choices(draft.choices),
        "balanced": draft.balanced,
    }
    if draft.balanced is not None and not isinstance(draft.balanced, bool):
        raise BadRow("whose isBalanced is neither true nor false", draft.balanced)
    found = [_picture(image, pictures) for image in draft.images]
    for image, name in zip(draft.images, found, strict=True):
        if name is None:
            missing[question_id] = str(image)
            return None
    row["image_ids"] = found
    row["split"] = _split(draft, source, [pictures[name] for name in found if name is not None])
    return row


def _picture(image: Any, pictures: Mapping[str, str]) -> str | None:
    """The manifest's id of what a file calls a picture; None where it is not there. Raises BadRow.

    Files say 139, "139", COCO_train2014_000000000139, dev-1-0-img0.png or folder/photo.jpg.
    """
    try:
        written = read_id(image)
    except ValueError as error:
        raise BadRow(f"whose image cannot be used ({error})", image) from None
    name = written.replace("\\", "/").rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0] if "." in name else name
    for candidate in (written, name, stem, stem.rsplit("_", 1)[-1]):
        try:
            key = image_key(candidate)
        except ValueError:
            continue
        for form in (candidate, key):
            if form in pictures:
                return form
    return None


def _split(draft: Draft, source: QuestionSource, of_pictures: list[str]) -> str:
    if source.split is not None:
        return source.split
    if draft.split is not None:
        return _text(draft.split, "split").strip()
    if len(set(of_pictures)) > 1:
        raise BadRow("whose pictures are of two splits", of_pictures)
    return of_pictures[0]


def _text(value: Any, what: str) -> str:
    """Text with a character that is no blank. Raises BadRow."""
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"whose {what} is {'empty' if isinstance(value, str) else 'not text'}", value)
    return whole_characters(value)


def _answers(answers: Any) -> list[str]:
    """As they were given; an answer of ten may be empty, all may not. Raises BadRow."""
    if not isinstance(answers, (list, tuple)):
        raise BadRow("whose answers are no list", answers)
    for answer in answers:
        if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
            raise BadRow("which have an answer that is neither text nor a number", answer)
    texts = [whole_characters(str(answer)) for answer in answers]
    if texts and not any(text.strip() for text in texts):
        raise BadRow("whose answers are empty", list(answers))
    return texts


def _entailed(entailed: Any) -> list[str] | None:
    if entailed is None:
        return None
    if not isinstance(entailed, list):
        raise BadRow("whose entailed questions are no list", entailed)
    return [_id(name, "entailed question") for name in entailed]


def _choices(choices: Any) -> dict[str, list[str]] | None:
    if choices is None:
        return None
    found = {}
    for name in ("valid", "plausible"):
        values = choices.get(name) if isinstance(choices, dict) else None
        if not isinstance(values, list):
            raise BadRow("whose choices are no lists of valid and plausible answers", choices)
        found[name] = [_text(value, "choices") for value in values]
    return found


def _id(value: Any, what: str) -> str:
    try:
        return read_id(value)
    except ValueError as error:
        raise BadRow(f"whose {what} cannot be used ({error})", value) from None


def _check(source: QuestionSource, tell: list[BadRows], missing: Mapping[str, str]) -> None:
    """Tell what was left out, or refuse the file where that is too much."""
    total = tell[0].total
    if not total:
        raise UserError(f"{source.questions}: it has no questions; give a file that has, or leave it out")
    names = list(dict.fromkeys(missing.values()))
    named = ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
    told = f"{len(missing)} of {total} questions are about pictures that are not there ({named})"
    if len(missing) > source.missing_share * total:
        first = next(iter(missing))
        raise UserError(
            f"{source.questions}: {told}, more than {source.missing_share:.0%}; the first is question {first}; give the "
            "questions of these pictures, or a larger missing_share"
        )
    for rows in tell:
        rows.check()
        if len(rows):
            print(
                f"questions: {rows.path}: left out {len(rows)} of {rows.total} {rows.what}: {rows}",
                file=sys.stderr,
            )
    if missing:
        print(f"questions: {source.questions}: left out: {told}", file=sys.stderr)
