"""What each form of question files says: a draft a row, as it is written there. Which rows can be used, `rows` decides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.features.datasets.bad_rows import BadRow, BadRows
from diptych.features.datasets.question_files.config import QuestionSource
from diptych.features.errors import UserError
from diptych.features.ids import read_id
from diptych.features.text_files import json_kind, read_json, read_json_lines

PEOPLE = 10  # who answered each question of VQA
UNKNOWN = "unknown"  # the kind where a file says none


@dataclass
class Draft:
    """A question as its file has it; ids and texts are of any type until they are checked.

    problem: why it cannot be used, where that is known already.
    """

    question_id: Any
    images: tuple[Any, ...] = ()
    question: Any = None
    answers: Any = ()
    kind: Any = UNKNOWN
    split: Any = None
    group: Any = None
    entailed: Any = None
    choices: Any = None
    balanced: Any = None
    problem: BadRow | None = None


def read_vqa(source: QuestionSource, tell: list[BadRows]) -> Iterator[Draft]:
    """VQA v2: questions, and annotations by question_id; the kind is the answer type."""
    annotations: dict[str, dict[str, Any]] = {}
    bad = BadRows(source.annotations or source.questions, "annotations")
    tell.append(bad)
    if source.annotations is not None:
        for number, row in enumerate(_rows_of(source.annotations, "annotations", "VQA's annotations")):
            bad.total += 1
            try:
                key = _key(row, "question_id")
                if key in annotations:
                    raise BadRow("whose question is answered before", row["question_id"])
                annotations[key] = row
            except BadRow as problem:
                bad.add(_named(row, "question_id", number), problem)
    for number, row in enumerate(_rows_of(source.questions, "questions", "VQA's questions")):
        draft = Draft(_named(row, "question_id", number))
        try:
            annotation = annotations.pop(_key(row, "question_id"), None)
            draft.images, draft.question = (row.get("image_id"),), row.get("question")
            if source.annotations is not None:
                if annotation is None:
                    raise BadRow("which the annotations do not answer", row["question_id"])
                if not _same_id(annotation.get("image_id"), row.get("image_id")):
                    raise BadRow("which the annotations have with another image", annotation.get("image_id"))
                draft.answers, draft.kind = _vqa_answers(annotation), annotation.get("answer_type", UNKNOWN)
        except BadRow as problem:
            draft.problem = problem
        yield draft
    for key in annotations:
        bad.add(key, BadRow("whose question is not in the questions file", str(source.questions)))


def read_gqa(source: QuestionSource, tell: list[BadRows]) -> Iterator[Draft]:
    """GQA: an object of questions by their ids; what a split hides is left out, and null."""
    content, choices = read_json(source.questions), {}
    if source.choices is not None:
        bad = BadRows(source.choices, "choices")
        tell.append(bad)
        for key, value in _object_of(source.choices, read_json(source.choices), "GQA's choices").items():
            bad.total += 1
            try:
                choices[_id(key, "id")] = value
            except BadRow as problem:
                bad.add(key, problem)
    for key, row in _object_of(source.questions, content, "GQA's questions").items():
        draft = Draft(key)
        if not isinstance(row, dict) or "question" not in row:
            draft.problem = BadRow("that are no objects with a question", row)
            yield draft
            continue
        draft.images, draft.question = (row.get("imageId"),), row["question"]
        draft.answers = () if row.get("answer") is None else (row["answer"],)
        types, groups = row.get("types"), row.get("groups")
        if isinstance(types, dict):
            draft.kind = f"{types.get('structural')}.{types.get('semantic')}"
        draft.group = groups.get("global") if isinstance(groups, dict) else None
        draft.entailed, draft.balanced = row.get("entailed"), row.get("isBalanced")
        try:
            draft.choices = row.get("choices") or choices.get(_id(key, "id"))
        except BadRow as problem:
            draft.problem = problem
        yield draft


def read_visual_genome(source: QuestionSource, tell: list[BadRows]) -> Iterator[Draft]:
    """Visual Genome's question_answers.json: pictures with their questions; the kind is the question's first word."""
    pictures = _list_of(
        source.questions, read_json(source.questions), "Visual Genome's question_answers.json"
    )
    for number, picture in enumerate(pictures):
        questions = picture.get("qas") if isinstance(picture, dict) else None
        if not isinstance(questions, list):
            yield Draft(_named(picture, "id", number), problem=BadRow("that have no list of qas", picture))
            continue
        for row in questions:
            draft = Draft(_named(row, "qa_id", number))
            if isinstance(row, dict):
                draft.images = (row.get("image_id", picture.get("id", picture.get("image_id"))),)
                draft.question, draft.answers = row.get("question"), (row.get("answer"),)
                draft.kind = str(row.get("question")).strip().split(" ", 1)[0].lower() or UNKNOWN
            else:
                draft.problem = BadRow("that are no objects", row)
            yield draft


def read_nlvr2(source: QuestionSource, tell: list[BadRows]) -> Iterator[Draft]:
    """NLVR2: a statement a line. Its pictures are named by the identifier without its last field, and -img0, -img1."""
    for number, row in read_json_lines(source.questions):
        draft = Draft(f"none, line {number}", kind="statement")
        if not isinstance(row, dict) or not isinstance(row.get("identifier"), str):
            draft.problem = BadRow("that are no JSON objects with an identifier", row)
        else:
            draft.question_id, draft.question = row["identifier"], row.get("sentence")
            pair = row["identifier"].rsplit("-", 1)[0]
            draft.images = (f"{pair}-img0", f"{pair}-img1")
            draft.problem = _statement_answer(draft, row)
        yield draft


def read_lxmert(source: QuestionSource, tell: list[BadRows]) -> Iterator[Draft]:
    """LXMERT's two forms: pictures with aligned sentences and labels (for pretraining; captions are passed over, as
    they have no label), or a question or statement a row with its label (for fine-tuning)."""
    for number, row in enumerate(_list_of(source.questions, read_json(source.questions), "LXMERT's JSON")):
        if not isinstance(row, dict):
            yield Draft(f"none, entry {number}", problem=BadRow("that are no objects", row))
        elif "sentf" in row:
            yield from _aligned(row, number)
        else:
            yield _fine_tuning(row, number)


def read_plain(source: QuestionSource, tell: list[BadRows]) -> Iterator[Draft]:
    """One's own questions: {image, question, answers or answer, id, split, kind}; two images make it a statement."""
    given: Counter[str] = Counter()
    for number, row in enumerate(
        _list_of(source.questions, read_json(source.questions), "a list of questions")
    ):
        if not isinstance(row, dict):
            yield Draft(f"none, entry {number}", problem=BadRow("that are no objects", row))
            continue
        image = row.get("image")
        images = tuple(image) if isinstance(image, list) else (image,)
        name = str(images[0]).rsplit("/", 1)[-1].rsplit(".", 1)[0][:60] if images else ""
        answers = row.get("answers", [] if row.get("answer") is None else [row["answer"]])
        kind = "statement" if len(images) == 2 else "question"
        draft = Draft(row.get("id"), images, row.get("question"), answers, row.get("kind", kind))
        if draft.question_id is None:
            draft.question_id, given[name] = f"{name}-{given[name]}", given[name] + 1
        draft.split = row.get("split")
        yield draft


READERS: dict[str, Callable[[QuestionSource, list[BadRows]], Iterator[Draft]]] = {
    "vqa": read_vqa,
    "gqa": read_gqa,
    "visual_genome": read_visual_genome,
    "nlvr2": read_nlvr2,
    "lxmert": read_lxmert,
    "plain": read_plain,
}


def _aligned(row: dict[str, Any], number: int) -> Iterator[Draft]:
    """The questions of a picture in LXMERT's form: sentences and labels of each data set, one for one."""
    image, sentences, labels = row.get("img_id"), row["sentf"], row.get("labelf")
    if not isinstance(sentences, dict) or not isinstance(labels, dict):
        yield Draft(
            _named(row, "img_id", number), problem=BadRow("whose sentf or labelf is no object", labels)
        )
        return
    for name, of_name in labels.items():
        asked = sentences.get(name)
        if not isinstance(asked, list) or not isinstance(of_name, list) or len(asked) != len(of_name):
            problem = BadRow("whose sentences and labels are not as many", name)
            yield Draft(_named(row, "img_id", number), problem=problem)
            continue
        for place, (question, label) in enumerate(zip(asked, of_name, strict=True)):
            draft = Draft(f"{image}-{name}-{place}", (image,), question, kind=name)
            draft.problem = _label(draft, label, of_people=name == "vqa")
            yield draft


def _fine_tuning(row: dict[str, Any], number: int) -> Draft:
    """A row of LXMERT's files for VQA, GQA or NLVR2."""
    if "img0" in row:
        draft = Draft(_named(row, "identifier", number), (row["img0"], row.get("img1")), row.get("sent"))
        draft.kind = "statement"
        draft.problem = _statement_answer(draft, row)
        return draft
    draft = Draft(_named(row, "question_id", number), (row.get("img_id"),), row.get("sent"))
    draft.kind = row.get("answer_type", UNKNOWN)
    if "label" in row:
        draft.problem = _label(draft, row["label"], of_people="answer_type" in row)
    return draft


def _label(draft: Draft, label: Any, of_people: bool) -> BadRow | None:
    """Answers of a label, answer to score. Of people, 0.3, 0.6, 0.9 and 1 are VQA's accuracy if one, two, three and
    at least four of ten say it; who else there was is empty, so that the ten give these accuracies again."""
    if not isinstance(label, dict):
        return BadRow("whose label is no object of answers and scores", label)
    scores = list(label.values())
    # Python's JSON knows NaN and Infinity
    if any(
        isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) < math.inf
        for score in scores
    ):
        return BadRow("whose label has scores that are no numbers", label)
    if not of_people:
        draft.answers = sorted(label, key=lambda answer: (-label[answer], answer))
        return None
    answers = [answer for answer, score in label.items() for _ in range(_people(score))]
    if len(answers) > PEOPLE:
        return BadRow(f"whose label has scores of more than {PEOPLE} people", label)
    draft.answers = [*answers, *[""] * (PEOPLE - len(answers))] if answers else []
    return None


def _people(score: float) -> int:
    """How many of ten gave an answer of this score; four for any that is 1, as more give the same."""
    return 4 if score > 0.95 else max(0, round(score / 0.3))


def _statement_answer(draft: Draft, row: dict[str, Any]) -> BadRow | None:
    label = row.get("label")
    if label is None:
        return None
    known = {"true": "true", "1": "true", "false": "false", "0": "false"}
    answer = known.get(str(label).strip().lower())
    if answer is None:
        return BadRow("whose label is neither true nor false", label)
    draft.answers = (answer,)
    return None


def _vqa_answers(annotation: dict[str, Any]) -> list[Any]:
    answers = annotation.get("answers")
    if not isinstance(answers, list):
        raise BadRow("whose answers are no list", answers)
    return [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]


def _rows_of(path: Path, key: str, expected: str) -> list[Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(
            f"{path}: not {expected} (a list under {key!r}) but {json_kind(content)}; set the form"
        )
    return content[key]


def _list_of(path: Path, content: Any, expected: str) -> list[Any]:
    if not isinstance(content, list):
        raise UserError(f"{path}: not {expected} but {json_kind(content)}; set the form")
    return content


def _object_of(path: Path, content: Any, expected: str) -> dict[str, Any]:
    if not isinstance(content, dict) or isinstance(content.get("questions"), list):
        raise UserError(f"{path}: not {expected} (an object by id) but {json_kind(content)}; set the form")
    return content


def _named(row: Any, key: str, number: int) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    return f"none, entry {number}" if value is None else value


def _key(row: Any, name: str) -> str:
    if not isinstance(row, dict):
        raise BadRow("that are no objects", row)
    return _id(row.get(name), name)


def _id(value: Any, name: str) -> str:
    try:
        return read_id(value)
    except ValueError as error:
        raise BadRow(f"whose {name} cannot be used ({error})", value) from None


def _same_id(one: Any, other: Any) -> bool:
    return one is None or _id(one, "image_id") == _id(other, "image_id")
