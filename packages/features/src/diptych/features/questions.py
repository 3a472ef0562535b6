"""Questions: one Parquet row per question, the contract between who asks and everything that learns or measures answers.

| column | type | meaning |
| --- | --- | --- |
| question_id | string | unique in the table |
| split | string | train, val, test, ... |
| image_ids | list of string | one picture; two for a statement, the left one first |
| question | string | as it was asked, or the statement |
| answers | list of string | ten where people answered, one where one is true, none where they are hidden; of ten some may be empty |
| kind | string | what it asks: VQA's answer type, GQA's "structural.semantic", Toybox's kinds, "statement..." |
| group | string | GQA's groups.global, null where unknown |
| entailed | list of string | question_ids that whoever answers this one rightly can answer, null where unknown |
| choices | (valid, plausible), lists of string | answers in the question's scope, and those that are likely; null where unknown |
| balanced | bool | whether it is among those that GQA measures accuracy on, null where unknown |

Ids are text: those of questions as `diptych.features.ids` reads them, those of pictures as the manifest has them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from diptych.features.contract_tables import check_columns, read_table, write_table
from diptych.features.errors import UserError
from diptych.features.ids import LONGEST, read_id

VERSION = b"1"
_VERSION_KEY = b"diptych.questions"

_TEXTS = pa.list_(pa.string())
CHOICES = pa.struct([pa.field("valid", _TEXTS), pa.field("plausible", _TEXTS)])
QUESTIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_ids", _TEXTS, nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answers", _TEXTS, nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("entailed", _TEXTS),
        pa.field("choices", CHOICES),
        pa.field("balanced", pa.bool_()),
    ],
    metadata={_VERSION_KEY: VERSION},
)
_REQUIRED = {field.name for field in QUESTIONS if not field.nullable}
_PICTURE = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}")
_LISTS = ("image_ids", "answers", "entailed")


def write_questions(
    rows: Iterable[dict[str, Any]], path: Path, image_ids: Collection[str] | None = None
) -> pa.Table:
    """Write rows as questions, atomically; the same rows give the same bytes. Returns the table.

    A row may leave out what is null. image_ids: the pictures there are; null checks nothing of the kind.

    Raises UserError that names the file and the question for a row that lacks a column or has a value of another
    type, an id that is not as `read_id` gives it or occurs twice, no picture or more than two, a picture whose id is not
    the manifest's or not among `image_ids`, a question without a character, answers that are all empty, or a column of
    the wrong type.
    """
    rows = list(rows)
    seen: set[str] = set()
    for row in rows:
        if fault := _fault(row, image_ids):
            raise UserError(f"{path}: question {row.get('question_id')}: {fault}")
        if row["question_id"] in seen:
            raise UserError(f"{path}: question {row['question_id']} occurs twice; ids must be unique")
        seen.add(row["question_id"])
    table = pa.table([_column(field, rows, path) for field in QUESTIONS], schema=QUESTIONS)
    write_table(table, path)
    return table


def read_questions(path: Path) -> pa.Table:
    """Read questions. Raises UserError when the file is missing, foreign or of another version."""
    table = read_table(path, "questions", _VERSION_KEY, VERSION)
    check_columns(table, QUESTIONS, path)
    return table


def questions_of(table: pa.Table, splits: Collection[str], source: Path) -> list[dict[str, Any]]:
    """The rows of some splits as dictionaries, in the table's order. Raises UserError where there are none."""
    import pyarrow.compute as pc

    wanted = pa.array(list(splits), pa.string())
    rows = table.filter(pc.is_in(table["split"], value_set=wanted)).to_pylist()
    if not rows:
        there = ", ".join(sorted(set(table["split"].to_pylist()))) or "none"
        raise UserError(f"{source}: no question is in the splits {', '.join(splits)}; it has {there}")
    return rows


def _fault(row: dict[str, Any], image_ids: Collection[str] | None) -> str | None:
    """What is wrong with a row and how to mend it; None where nothing is."""
    if missing := sorted(name for name in _REQUIRED if row.get(name) is None):
        return f"lacks {', '.join(missing)}; give it"
    for name in _LISTS:
        if isinstance(row.get(name), str):
            return f"{name} is a string instead of a list of strings"
    for name in (row["question_id"], *(row.get("entailed") or ())):
        if not _is_id(name):
            return f"{name!r} is no question's id; ids are text, as diptych.features.ids.read_id gives them"
    for name in row["image_ids"]:
        if not isinstance(name, str) or not _PICTURE.fullmatch(name):
            return f"{name!r} is no picture's id; use the manifest's: letters, digits, _ and -"
    if not 1 <= len(row["image_ids"]) <= 2:
        return f"has {len(row['image_ids'])} pictures; a question is about one, a statement about two"
    if image_ids is not None and (unknown := [name for name in row["image_ids"] if name not in image_ids]):
        return f"is about picture {unknown[0]}, which is not there; leave the question out"
    if not isinstance(row["split"], str) or not re.fullmatch(r"[A-Za-z0-9_]+", row["split"]):
        return f"split {row['split']!r}: use letters, digits and _"
    for what in ("question", "kind"):
        if not isinstance(row[what], str) or not row[what].strip():
            return f"its {what} is {row[what]!r}; give a text with a character in it"
    if not all(isinstance(answer, str) for answer in row["answers"]):
        return f"its answers {row['answers']!r} are not all text"
    if row["answers"] and not any(answer.strip() for answer in row["answers"]):
        return "its answers are all empty; leave it out, or give no answers where they are hidden"
    return None


def _is_id(value: object) -> bool:
    try:
        return read_id(value) == value
    except ValueError:
        return False


def _column(field: pa.Field, rows: list[dict[str, Any]], path: Path) -> pa.Array:
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise UserError(f"{path}: column {field.name} must be {field.type}: {error}") from error
