"""Files of questions for ``diptych ask``: one question a line, or JSON whose questions name their pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.features.errors import UserError as FeaturesError
from diptych.features.ids import read_id
from diptych.features.text_files import read_json, whole_characters
from diptych.model.errors import UserError

FORMS = (
    '[{"question_id": 1, "image": "photo.jpg", "question": "..."}, ...], VQA\'s {"questions": [{"question_id", "image_id", '
    '"question"}, ...]}, or one question a line'
)
_NUMBERED = re.compile(
    r"COCO_[a-z]+[0-9]{4}_([0-9]+)"
)  # of picture files that VQA names by their number alone


@dataclass(frozen=True)
class FileQuestion:
    """A question of a JSON file.

    Attributes:
        question_id: as the file writes it.
        image: the name of its picture's file, or its number, as text.
        question: without halves of characters.
    """

    question_id: int | str
    image: str
    question: str


def read_question_file(path: Path) -> list[str] | list[FileQuestion]:
    """Read questions: text where the file has one a line, else those of its JSON.

    Raises:
        UserError: the file is missing, unreadable or has no question; or an entry lacks its question or picture, or has the
            id of another.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the questions cannot be read ({error.strerror})") from None
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{") or content.startswith(b"\x1f\x8b"):
        return _entries(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 (place {error.start}); save it as UTF-8") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: no question in it; write one a line")
    return lines


def _entries(path: Path) -> list[FileQuestion]:
    try:
        content = read_json(path)
    except FeaturesError as error:
        raise UserError(str(error)) from None
    rows = content.get("questions") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: no list of questions; expected {FORMS}")
    entries: list[FileQuestion] = []
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows):
        entry = _entry(row, number, path)
        key = read_id(entry.question_id)
        if key in numbers:
            raise UserError(
                f"{path}: entries {numbers[key]} and {number} both have question_id {key}; ids must be unique"
            )
        numbers[key] = number
        entries.append(entry)
    return entries


def _entry(row: Any, number: int, path: Path) -> FileQuestion:
    """Entry ``number`` of a file; without an id its number is one."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: entry {number} is no object; expected {FORMS}")
    question_id: Any = row.get("question_id", row.get("id", number))
    image = row.get("image", row.get("image_id"))
    for key, value in (("question_id", question_id), ("image or image_id", image)):
        try:
            read_id(value)
        except ValueError as error:
            # a path may be longer than an id
            if key == "question_id" or not isinstance(value, str) or not value.strip():
                raise UserError(f"{path}: entry {number}: {key} is {error}; expected {FORMS}") from None
    question = row.get("question")
    if not isinstance(question, str):
        raise UserError(
            f"{path}: entry {number} (question_id {question_id}) has no question; expected {FORMS}"
        )
    return FileQuestion(question_id, str(image), whole_characters(question))


class PictureFiles:
    """Finds the files that questions mean: by name, by their path in a folder, or by the number in their name."""

    def __init__(self, files: Iterable[str], folders: Iterable[str]) -> None:
        """``files``: of pictures, some of them below ``folders``."""
        above = [Path(folder) for folder in folders]
        self._files: dict[str, set[str]] = {}
        for file in files:
            path = Path(file)
            inside = [path.relative_to(folder) for folder in above if path.is_relative_to(folder)]
            numbered = _NUMBERED.fullmatch(path.stem)
            keys = {path.as_posix(), path.name, *(one.as_posix() for one in inside)}
            for stem in {path.stem, *(numbered.groups() if numbered else ())}:
                try:
                    keys.add(read_id(stem))
                except ValueError:  # longer than ids are
                    continue
            for key in keys:
                self._files.setdefault(key, set()).add(file)

    @staticmethod
    def beside(file: Path, image: str) -> str:
        """The file of the picture ``image`` in the folder of ``file``.

        Raises:
            UserError: there is none.
        """
        path = file.parent / image
        if not os.path.isfile(path):
            raise UserError(f"picture {image} is not in the folder of {file}; name the folder that has it")
        return str(path)

    def find(self, image: str) -> str:
        """The file of the picture ``image``.

        Raises:
            UserError: no file or several ones are meant.
        """
        keys = [image, PurePosixPath(image).name]
        if len(image) <= 80:
            keys.append(read_id(image))
        for key in keys:
            files = self._files.get(key, set())
            if len(files) == 1:
                return next(iter(files))
            if files:
                first, second = sorted(files)[:2]
                raise UserError(f"picture {image} may be {first} or {second}; name one folder alone")
        raise UserError(f"picture {image} is not among the pictures; name the folder that has it")
