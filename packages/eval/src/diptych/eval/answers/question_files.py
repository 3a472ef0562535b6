"""Questions with their answers: the contract's Parquet, VQA v2's annotations, GQA's questions, NLVR2's statements."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diptych.eval.answers.gqa import COMMON
from diptych.eval.answers.questions import Choices, Question
from diptych.eval.entries import entry_id, short
from diptych.eval.errors import UserError
from diptych.eval.text_files import read_json, read_json_or_lines, whole_characters

Metric = Literal["vqa", "gqa", "nlvr2"]
QUESTION_FORMS = (
    "Diptych's questions (Parquet), VQA v2's annotations (v2_mscoco_val2014_annotations.json), GQA's questions "
    "(val_balanced_questions.json) or NLVR2's lines of JSON (dev.json)"
)
_COLUMNS = ("question_id", "split", "image_ids", "answers", "kind")
_OPTIONAL = ("group", "entailed", "choices", "balanced")


@dataclass(frozen=True)
class QuestionFile:
    """questions: in file order. splits: the split of each, "" where the file does not say. form: whose form the file has."""

    questions: list[Question]
    splits: list[str]
    form: Literal["parquet", "vqa", "gqa", "nlvr2"]


def read_question_file(path: Path, choices: Path | None = None) -> QuestionFile:
    """Read questions of any of the forms. choices: GQA's file of choices, for GQA's questions.

    Ids become text by the rule of `diptych.eval.ids`. Raises UserError that names the file and the entry where something is
    missing, is of another kind, or is there twice.
    """
    reader = _Reader(path)
    if _is_parquet(path):
        form, rows = "parquet", reader.parquet()
    else:
        content = read_json_or_lines(path, QUESTION_FORMS)
        form, rows = reader.json(content, {} if choices is None else _read_choices(choices))
    if choices is not None and form != "gqa":
        raise UserError(f"--choices {choices}: only GQA's JSON has its choices elsewhere, and {path} is none")
    found, splits = [], []
    seen: set[str] = set()
    for question, split in rows:
        if question.question_id in seen:
            raise UserError(f"{path}: question {question.question_id} is there twice; ids must be unique")
        seen.add(question.question_id)
        found.append(question)
        splits.append(split)
    if not found:
        raise UserError(f"{path}: no questions in it; expected {QUESTION_FORMS}")
    if reader.broken:
        print(f"{path}: halves of characters are replaced in {reader.broken} answers", file=sys.stderr)
    return QuestionFile(found, splits, form)  # type: ignore[arg-type]


def metric_of(file: QuestionFile, path: Path) -> Metric:
    """What to measure where nobody says: the form's own metric; of Parquet NLVR2's for pairs of pictures, VQA's where
    people gave several answers, GQA's where there is one. Raises UserError where questions and statements are mixed."""
    if file.form != "parquet":
        return file.form
    pairs = Counter(len(question.image_ids) == 2 for question in file.questions)
    if len(pairs) == 2:
        raise UserError(
            f"{path}: {pairs[False]} questions and {pairs[True]} statements; choose with --metric (vqa or gqa, or nlvr2)"
        )
    if pairs[True]:
        return "nlvr2"
    return "gqa" if all(len(question.answers) == 1 for question in file.questions) else "vqa"


class _Reader:
    """Reads rows of one file, and counts answers with halves of characters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0

    def parquet(self) -> Iterator[tuple[Question, str]]:
        for number, row in enumerate(_parquet_rows(self.path)):
            where = f"row {number}"
            question_id = self._id(row["question_id"], where)
            where = f"question {question_id}"
            choices = row.get("choices")
            balanced = row.get("balanced")
            yield (
                Question(
                    question_id,
                    self._texts(row["answers"], where, "answers"),
                    self._text(row["kind"], where, "kind"),
                    tuple(
                        self._id(value, where) for value in self._listed(row["image_ids"], where, "image_ids")
                    ),
                    row.get("group"),
                    self._entailed(row, where),
                    None if choices is None else self._choices(choices, where),
                    True if balanced is None else bool(balanced),
                ),
                self._text(row["split"], where, "split"),
            )

    def json(self, content: Any, choices: dict[str, Any]) -> tuple[str, Iterator[tuple[Question, str]]]:
        """The form, and the rows."""
        if isinstance(content, dict) and "identifier" in content:
            content = [content]  # a file of one line
        if (
            isinstance(content, list)
            and content
            and isinstance(content[0], dict)
            and "identifier" in content[0]
        ):
            return "nlvr2", self._nlvr2(content)
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            return "vqa", self._vqa(content)
        if isinstance(content, dict) and isinstance(content.get("questions"), list):
            raise UserError(
                f"{self.path}: VQA's questions without their answers; give the file of annotations"
            )
        first = next(iter(content.values()), None) if isinstance(content, dict) else None
        if isinstance(first, dict) and ("imageId" in first or "types" in first or "isBalanced" in first):
            return "gqa", self._gqa(content, choices)
        raise UserError(f"{self.path}: no questions that are known here; expected {QUESTION_FORMS}")

    def _vqa(self, content: dict[str, Any]) -> Iterator[tuple[Question, str]]:
        split = content.get("data_subtype")
        for number, row in enumerate(content["annotations"]):
            where = f"entry {number}"
            question_id = self._id(self._of(row, "question_id", where), where)
            where = f"question {question_id}"
            answers, records = [], []
            for record in self._listed(self._of(row, "answers", where), where, "answers"):
                answers.append(self._text(self._of(record, "answer", where), where, "answer"))
                records.append(repr(sorted(record.items(), key=str)))
                # the script takes records that are wholly equal for one person's
                if "answer_id" in record and records[-1] in records[:-1]:
                    raise UserError(
                        f"{self.path}: {where} has the answer_id {short(record['answer_id'])} twice; mend it"
                    )
            pictures = (self._id(row["image_id"], where),) if "image_id" in row else ()
            kind = self._text(row.get("answer_type") or "", where, "answer_type")
            yield (
                Question(question_id, tuple(answers), kind, pictures),
                split if isinstance(split, str) else "",
            )

    def _gqa(self, content: dict[str, Any], choices: dict[str, Any]) -> Iterator[tuple[Question, str]]:
        for key, row in content.items():
            question_id = self._id(key, f"key {short(key)}")
            where = f"question {question_id}"
            if "answer" not in self._object(row, where):
                raise UserError(
                    f"{self.path}: {where} has no answer (GQA's submission file hides them); give another split"
                )
            types = row.get("types") if isinstance(row.get("types"), dict) else {}
            groups = row.get("groups") if isinstance(row.get("groups"), dict) else {}
            own: Choices | None = None
            if choices:
                if question_id in choices:
                    own = self._choices(choices[question_id], f"{where} of the choices")
                if own and "Common" in str(types.get("detailed")):
                    own = Choices(COMMON, COMMON)
            semantic = types.get("semantic")
            yield (
                Question(
                    question_id,
                    (self._text(row["answer"], where, "answer"),),
                    f"{types.get('structural') or ''}{f'.{semantic}' if semantic else ''}",
                    (self._id(row["imageId"], where),) if "imageId" in row else (),
                    groups.get("global"),
                    self._entailed(row, where),
                    own,
                    bool(row.get("isBalanced", True)),
                ),
                "",
            )

    def _nlvr2(self, rows: list[Any]) -> Iterator[tuple[Question, str]]:
        for number, row in enumerate(rows):
            where = f"entry {number}"
            identifier = self._id(self._of(row, "identifier", where), where)
            label = self._of(row, "label", f"statement {identifier}")
            text = (
                str(label)
                if isinstance(label, bool)
                else self._text(label, f"statement {identifier}", "label")
            )
            yield Question(identifier, (text,), "statement"), identifier.partition("-")[0]

    def _id(self, value: Any, where: str) -> str:
        return entry_id(value, self.path, where)

    def _object(self, row: Any, where: str) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise UserError(f"{self.path}: {where} is {short(row)}, no object; expected {QUESTION_FORMS}")
        return row

    def _of(self, row: Any, key: str, where: str) -> Any:
        if key not in self._object(row, where):
            raise UserError(f"{self.path}: {where} has no {key}; expected {QUESTION_FORMS}")
        return row[key]

    def _text(self, value: Any, where: str, what: str) -> str:
        if not isinstance(value, str):
            raise UserError(f"{self.path}: {where}: its {what} is {short(value)}, not a text")
        whole = whole_characters(value)
        self.broken += whole is not value
        return whole

    def _listed(self, value: Any, where: str, what: str) -> list[Any]:
        if not isinstance(value, list):
            raise UserError(f"{self.path}: {where}: its {what} are {short(value)}, no list")
        return value

    def _texts(self, value: Any, where: str, what: str) -> tuple[str, ...]:
        return tuple(self._text(text, where, what) for text in self._listed(value, where, what))

    def _entailed(self, row: dict[str, Any], where: str) -> tuple[str, ...]:
        others = row.get("entailed")
        listed = [] if others is None else self._listed(others, where, "entailed")
        return tuple(self._id(other, where) for other in listed)

    def _choices(self, value: Any, where: str) -> Choices:
        valid, plausible = (
            self._texts(self._of(value, key, where), where, key) for key in ("valid", "plausible")
        )
        return Choices(frozenset(valid), frozenset(plausible))


def _read_choices(path: Path) -> dict[str, Any]:
    expected = 'GQA\'s choices ({"1": {"valid": [...], "plausible": [...]}, ...})'
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise UserError(f"{path}: no object; expected {expected}")
    found = {entry_id(key, path, f"key {short(key)}"): row for key, row in content.items()}
    for question_id, row in found.items():
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), list) for key in ("valid", "plausible")
        ):
            raise UserError(f"{path}: question {question_id} has {short(row)}; expected {expected}")
    return found


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False  # what is wrong with it says who reads it next


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "pyarrow, which reads Parquet, is missing; pip install 'diptych-eval[questions]'"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if lacking := [name for name in _COLUMNS if name not in names]:
            raise UserError(f"{path}: no column {lacking[0]}; Diptych's questions have {', '.join(_COLUMNS)}")
        for batch in file.iter_batches(
            1 << 14, columns=[name for name in (*_COLUMNS, *_OPTIONAL) if name in names]
        ):
            yield from batch.to_pylist()
    except (arrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason}); write it again") from None
