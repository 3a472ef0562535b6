"""Question files as people have them: VQA v2, GQA, Visual Genome, NLVR2, LXMERT's, and lists of one's own."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from diptych.features.datasets.bad_rows import BadRow, BadRows
from diptych.features.datasets.keys import COCO_NAME, image_key
from diptych.features.datasets.question_files.config import QuestionFilesConfig, QuestionSource
from diptych.features.datasets.question_files.forms import READERS, Draft
from diptych.features.errors import UserError
from diptych.features.ids import read_id
from diptych.features.text_files import whole_characters

__all__ = ["QuestionFilesConfig", "QuestionSource", "read_question_files"]

_NAMED = 5  # pictures that a message names


def read_question_files(
    sources: Sequence[QuestionSource], pictures: Mapping[str, str], paths: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The questions of files as rows for `write_questions`, in the files' order.

    pictures: image_id to split of the pictures there are, as the manifest has them; paths: image_id to path. Files may
    name pictures by id (139), by COCO's file names (COCO_train2014_000000000139), or by the name of their file.

    Rows that cannot be used are left out and told with their ids; more than one in a hundred of a file
    (`bad_rows.MAX_BAD_SHARE`) refuse it. So do questions about pictures that are not there, above `missing_share`.
    Raises UserError for these, for a file that is missing or of another form, and for an id that two files have.
    """
    rows: list[dict[str, Any]] = []
    if not sources:
        return rows
    known = _Pictures(pictures, paths or {})
    first: dict[str, QuestionSource] = {}
    for source in sources:
        bad = BadRows(source.questions, "questions")
        tell = [bad]
        missing: dict[str, str] = {}
        for draft in READERS[source.form](source, tell):
            bad.total += 1
            try:
                row = _row(draft, source, known, missing)
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


class _Pictures:
    """The pictures there are: their splits by id, and what their files are called."""

    def __init__(self, splits: Mapping[str, str], paths: Mapping[str, str]) -> None:
        self.splits, self._paths = splits, paths
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)  # names without their endings
        for image_id, path in paths.items():
            self._by_name[PurePosixPath(path).name].append(image_id)
            self._by_stem[PurePosixPath(path).stem].append(image_id)

    def find(self, image: Any) -> str | None:
        """The id of what a file calls a picture; None where it is not there. Raises BadRow where that may be several.

        Files say 139, "139", COCO_train2014_000000000139, dev-1-0-img0.png or folder/photo.jpg. No number is read out of
        the name of a file, but out of COCO's own: 0001.jpg need not be the picture 1.
        """
        try:
            written = read_id(image)
        except ValueError as error:
            raise BadRow(f"whose image cannot be used ({error})", image) from None
        path = PurePosixPath((image.strip() if isinstance(image, str) else written).replace("\\", "/"))
        by_id, by_file = self._of_id(written), self._of_file(path)
        if by_id is not None:
            if isinstance(image, str) and by_file and by_id not in by_file:
                raise BadRow("whose image is the id of one picture and the file name of another", image)
            return by_id
        if len(by_file) > 1:
            raise BadRow("whose image is the name of several files, and its folders do not tell which", image)
        if by_file:
            return by_file[0]
        if path.stem in self.splits:
            return path.stem
        coco = COCO_NAME.fullmatch(path.stem)
        return coco[1] if coco and coco[1] in self.splits else None

    def _of_id(self, written: str) -> str | None:
        if written in self.splits:
            return written
        try:
            key = image_key(written)
        except ValueError:
            return None
        return key if key in self.splits else None

    def _of_file(self, path: PurePosixPath) -> list[str]:
        """Whose files are called so, or else so without the ending; of several those in the same folders."""
        found = self._by_name.get(path.name) or self._by_stem.get(path.stem) or []
        folders = path.parent.parts
        if len(found) > 1 and folders:
            parents = {image_id: PurePosixPath(self._paths[image_id]).parent.parts for image_id in found}
            found = [image_id for image_id in found if parents[image_id][-len(folders) :] == folders]
        return found


def _row(
    draft: Draft, source: QuestionSource, pictures: _Pictures, missing: dict[str, str]
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
    found = [pictures.find(image) for image in draft.images]
    for image, name in zip(draft.images, found, strict=True):
        if name is None:
            missing[question_id] = str(image)
            return None
    row["image_ids"] = found
    row["split"] = _split(draft, source, [pictures.splits[name] for name in found if name is not None])
    return row


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
