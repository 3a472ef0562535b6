"""Which answers the rows of a foreign answer head mean: files of LXMERT's kinds to an answer table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diptych.model.answer_table import AnswerTable
from diptych.model.errors import UserError

KINDS = "a list of answers, of {ans, dsets}, or an object of answers and their label numbers"


def read_answer_list(path: Path, rows: int) -> AnswerTable:
    """Read the answers of an answer head of ``rows`` rows, as they are written: LXMERT's ``all_ans.json`` (a list of
    ``{ans, dsets}``), ``trainval_label2ans.json`` (a list of text, or an object of label number to text),
    ``trainval_ans2label.json`` (an object of text to label number) or an ``answers.json`` of ours (a list of text).

    Raises:
        UserError: the file is missing, unreadable or of another kind, an answer is no text or there twice, a label number
            is missing, there twice or none of the head's rows, or there are not ``rows`` answers.
    """
    try:
        written = json.loads(path.read_text("utf-8"), object_pairs_hook=lambda pairs: once(path, pairs))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the answers that the head was trained with") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None
    if isinstance(written, list):
        answers = listed_answers(path, written)
    elif isinstance(written, dict):
        answers = numbered_answers(path, written, rows)
    else:
        raise UserError(f"{path}: holds a {type(written).__name__}, not {KINDS}")
    first: dict[str, int] = {}
    for entry, answer in enumerate(answers):
        if first.setdefault(answer, entry) != entry:
            raise UserError(
                f"{path}: entry {entry} repeats {answer!r} of entry {first[answer]}; each answer once"
            )
    if len(answers) != rows:
        raise UserError(
            f"{path}: {len(answers)} answers, but the answer head has {rows}; give those that it was trained with"
        )
    return AnswerTable(answers)


def once(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make the object of ``pairs``, of whose repeated keys JSON would keep the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"{path}: {key!r} is there twice, as {found[key]!r} and as {value!r}; keep one")
        found[key] = value
    return found


def listed_answers(path: Path, written: list[Any]) -> list[str]:
    """Return the texts of a list of text or of ``{ans, dsets}``."""
    answers = []
    for number, entry in enumerate(written):
        answer = entry.get("ans") if isinstance(entry, dict) else entry
        if not isinstance(answer, str):
            raise UserError(f"{path}: entry {number} is {str(entry)[:80]}, not text or {{ans, dsets}}")
        answers.append(answer)
    return answers


def numbered_answers(path: Path, written: dict[str, Any], rows: int) -> list[str]:
    """Return the texts of an object of text to label number, or the other way, in the order of the numbers."""
    by_number = all(isinstance(value, str) for value in written.values())
    answers: dict[int, str] = {}
    for key, value in written.items():
        answer, number = (value, label_number(key)) if by_number else (key, value)
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(f"{path}: entry {key!r} is {str(value)[:80]}; the file should be {KINDS}")
        if not 0 <= number < rows:
            raise UserError(
                f"{path}: {answer!r} has label number {number}, but the answer head has rows 0 to {rows - 1}; give the "
                "answers that it was trained with"
            )
        if number in answers:
            raise UserError(f"{path}: {answers[number]!r} and {answer!r} both have label number {number}")
        answers[number] = answer
    gap = next((number for number in range(rows) if number not in answers), None)
    if gap is not None:
        raise UserError(
            f"{path}: no answer has label number {gap} ({rows - len(answers)} of the head's {rows} are missing); give the "
            "answers that it was trained with"
        )
    return [answers[number] for number in range(rows)]


def label_number(key: str) -> int | None:
    """Return the whole number that ``key`` writes, if it does in plain digits."""
    return int(key) if key.isdecimal() and key.isascii() and len(key) < 10 else None
