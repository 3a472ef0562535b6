"""Predicted answers, in the forms that VQA, GQA and NLVR2 take and `diptych ask --json` gives."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diptych.eval.answers.nlvr2 import truth
from diptych.eval.entries import entry_id, short
from diptych.eval.errors import UserError
from diptych.eval.text_files import read_json_or_lines, read_text, whole_characters

PREDICTION_FORMS = (
    'VQA\'s result ([{"question_id": 1, "answer": "..."}, ...]), GQA\'s ([{"questionId": "1", "prediction": "..."}, ...]), '
    "one such object a line, or NLVR2's lines (dev-850-0-0,True)"
)
_ID_KEYS = ("question_id", "questionId", "identifier")
_ANSWER_KEYS = ("answer", "prediction")


def read_predictions(path: Path | str) -> dict[str, str | bool]:
    """One answer by question id, in file order; NLVR2's lines and JSON's true and false are bools.

    Ids become text by the rule of `diptych.eval.ids`. Halves of characters become U+FFFD; how many is told on stderr.

    Raises UserError that names the file and the entry or the question where the file is missing, something else or empty, an
    entry has no id or no answer, an answer is no text, or a question is answered twice.
    """
    text = read_text(path)
    rows: Iterable[tuple[str, Any, Any]]
    if text.strip() and text.lstrip()[0] not in "[{<":
        rows = _lines(text, path)
    else:
        rows = _objects(read_json_or_lines(path, PREDICTION_FORMS), path)
    found: dict[str, str | bool] = {}
    entries: dict[str, str] = {}
    broken = 0
    for where, value, answer in rows:
        question_id = entry_id(value, path, where)
        if question_id in found:
            raise UserError(
                f"{path}: question {question_id} is answered twice ({entries[question_id]} and {where}); one answer each"
            )
        if not isinstance(answer, (str, bool)):
            raise UserError(f"{path}: the answer to question {question_id} is {short(answer)}, not a text")
        if isinstance(answer, str):
            whole = whole_characters(answer)
            broken += whole is not answer
            answer = whole
        found[question_id], entries[question_id] = answer, where
    if not found:
        raise UserError(f"{path}: no answers in it; expected {PREDICTION_FORMS}")
    if broken:
        print(f"{path}: halves of characters are replaced in {broken} answers", file=sys.stderr)
    return found


def texts(predictions: dict[str, str | bool], path: Path | str) -> dict[str, str]:
    """Answers to questions. Raises UserError that names the question where one is true or false and no text."""
    found: dict[str, str] = {}
    for question_id, answer in predictions.items():
        if isinstance(answer, bool):
            raise UserError(
                f"{path}: question {question_id} is answered by {answer}, as a statement is (--metric nlvr2); give a text"
            )
        found[question_id] = answer
    return found


def truths(predictions: dict[str, str | bool], path: Path | str) -> dict[str, bool]:
    """Judgements of statements. Raises UserError that names the statement where one is neither true nor false."""
    found: dict[str, bool] = {}
    for question_id, answer in predictions.items():
        judged = answer if isinstance(answer, bool) else truth(answer)
        if judged is None:
            raise UserError(f"{path}: statement {question_id} is judged {short(answer)}; give True or False")
        found[question_id] = judged
    return found


def _lines(text: str, path: Path | str) -> Iterable[tuple[str, Any, Any]]:
    for number, row in _rows(text, path):
        if not any(cell.strip() for cell in row):
            continue
        judged = truth(row[1]) if len(row) == 2 else None
        if judged is None:
            raise UserError(
                f"{path}: line {number} is {short(','.join(row))}, not identifier,True or identifier,False; expected "
                f"{PREDICTION_FORMS}"
            )
        yield f"line {number}", row[0], judged


def _rows(text: str, path: Path | str) -> Iterable[tuple[int, list[str]]]:
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    try:
        yield from enumerate(reader, start=1)
    except csv.Error as error:  # a line that is too long
        raise UserError(f"{path}: line {reader.line_num}: {error}; expected {PREDICTION_FORMS}") from None


def _objects(content: Any, path: Path | str) -> Iterable[tuple[str, Any, Any]]:
    # one line of `diptych ask --json` is an object, and so would be the only entry of a list
    rows = [content] if isinstance(content, dict) and any(key in content for key in _ID_KEYS) else content
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list of answers; expected {PREDICTION_FORMS}")
    for number, row in enumerate(rows):
        where = f"entry {number}"
        keys = [
            next((key for key in known if isinstance(row, dict) and key in row), None)
            for known in (_ID_KEYS, _ANSWER_KEYS)
        ]
        if not all(keys):
            raise UserError(
                f"{path}: {where} has no question_id and answer but is {short(row)}; expected {PREDICTION_FORMS}"
            )
        yield where, row[keys[0]], row[keys[1]]
