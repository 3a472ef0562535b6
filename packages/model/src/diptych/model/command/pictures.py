"""What commands share that go through many pictures: names, folders, stdin, batches, and how one by one is answered."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from diptych.features.picture_folders import ENDINGS, find_pictures
from diptych.model.errors import UserError

LENIENT = "diptych_file_names"  # how names are written that are not UTF-8
# of characters; U+DC80 to U+DCFF are bytes of names that are not UTF-8
_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
Result = TypeVar("Result")
Line = tuple[str, TextIO]


def go_through(
    sources: Sequence[str | None],
    size: int,
    title: str,
    work: Callable[[list[str], list[Any]], Sequence[Result]],
    lines: Callable[[str, Result], Iterator[Line]],
    as_json: bool,
) -> bool:
    """Read pictures ``size`` at a time, and print what comes of each as soon as it is there.

    A picture that cannot be read is reported, and the others are worked on.

    Args:
        sources: of :func:`found`; those of stdin are worked on line by line, as they come.
        title: of the bar that shows how far it is.
        work: from names and their decoded pictures, at least one, to a result for each.
        lines: from a name and its result to what is printed, and where.

    Returns whether all could be read.
    """
    live = any(source is None for source in sources)
    from tqdm import tqdm

    all_read = True
    names = (name for source in sources for name in (stdin_lines() if source is None else (source,)))
    few = not live and len(sources) < 2
    with tqdm(
        total=None if live else len(sources), desc=title, unit="picture", disable=True if few else None
    ) as bar:
        for batch in batches(names, 1 if live else size):
            readable, images, problems = [], [], {}
            for name in batch:
                try:
                    images.append(read(name))
                    readable.append(name)
                except UserError as error:
                    problems[name] = str(error)
            found_of = dict(zip(readable, work(readable, images), strict=True)) if images else {}
            for name in batch:
                all_read &= name not in problems
                own = (
                    problem_lines(name, problems[name], as_json)
                    if name in problems
                    else lines(name, found_of[name])
                )
                for line, stream in own:
                    bar.write(line, file=stream)
                    stream.flush()
            bar.update(len(batch))
    return all_read


def problem_lines(name: str, problem: str, as_json: bool) -> Iterator[Line]:
    """What to print of a picture that cannot be read."""
    if as_json:
        yield json_line({**named(name), "error": readable_name(problem)})
    else:
        yield f"diptych: {problem}", sys.stderr


def json_line(content: dict[str, Any]) -> Line:
    """An object as a line of stdout, with escapes where stdout's encoding is not UTF-8: escapes of our own would be no
    JSON."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    return json.dumps(content, ensure_ascii=not utf8), sys.stdout


def named(name: str, key: str = "image") -> dict[str, str]:
    """A picture's name in JSON, which is text; where that is not what the file system calls it, its bytes too."""
    text = readable_name(name)
    return {key: text} if text == name else {key: text, f"{key}_bytes": os.fsencode(name).hex()}


def as_their_bytes() -> None:
    """Read and write names of files that are no UTF-8 as the bytes that they are, so that other programs find them."""
    codecs.register_error(LENIENT, _file_name_bytes)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, LENIENT)):
        if isinstance(stream, io.TextIOWrapper):  # what somebody put in its place may be no file
            stream.reconfigure(errors=errors)


def _file_name_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """What to write of characters that cannot be encoded: a name's bytes, or, where they are none, an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def found(names: list[str]) -> Iterator[str | None]:
    """The files that arguments name, folders by all pictures below them in the order of their names; None is stdin.

    What is left out of a folder is counted in one line on stderr.

    Raises:
        UserError: a folder has no picture.
    """
    for name in names:
        folder = Path(name)
        if name == "-":
            yield None
        elif os.path.isdir(name):  # what has too long a name, or may not be looked at, fails when it is read
            pictures = find_pictures(folder)
            if not pictures.files:
                also = f"; {pictures.remark}" if pictures.remark else ""
                raise UserError(
                    f"{name}: no picture below this folder (endings: {' '.join(sorted(ENDINGS))}){also}"
                )
            if pictures.remark:
                print(f"diptych: {name}: {pictures.remark}", file=sys.stderr)
            yield from (str(folder / file) for file in pictures.files)
        else:
            yield name


def stdin_lines() -> Iterator[str]:
    """Lines of stdin as they arrive, without those that are empty."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def batches(names: Iterator[str], size: int) -> Iterator[list[str]]:
    """``names``, ``size`` at a time."""
    batch: list[str] = []
    for name in names:
        batch.append(name)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read(name: str) -> Any:
    """One picture, decoded."""
    from diptych.model.packaged.pictures import read_picture

    return read_picture(name)


def readable_name(name: str) -> str:
    """A name with U+FFFD for each byte that is not UTF-8, and for each half of a character that is no byte, as a file of
    questions may have it."""
    if not has_surrogates(name):
        return name
    whole = _HALVES.sub("\ufffd", name)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def has_surrogates(text: str) -> bool:
    """Whether a text holds what is no character: bytes of a name that is not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)
