"""Text and JSON as people's programs write them: encodings, packed files, and files that are something else.

`diptych.features.text_files` reads JSON the same way: neither package knows the other.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from diptych.eval.errors import UserError

_HALVES = re.compile("[\ud800-\udfff]")
_KINDS = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run `git lfs pull`"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; unpack it, or export it as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; export it as CSV in UTF-8"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and name the file in it"),
    (b"BZh", "packed by bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "packed by xz; unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it with unzstd"),
    (b"PAR1", "a Parquet file, no text"),
    (b"SQLite format 3\x00", "a database of SQLite, no text"),
)


def read_text(path: Path | str, encoding: str | None = None) -> str:
    """A text file: UTF-8, UTF-16 or UTF-32, with or without a byte order mark, or `encoding`; also packed by gzip.

    Raises UserError that says what the file is and what to do where it is missing, unreadable or something else.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: packed by gzip, and damaged ({error}); copy it again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for start, kind in _KINDS:
        if content.startswith(start):
            raise UserError(f"{path}: {kind}")
    known = encoding or json.detect_encoding(content)
    try:
        return content.decode(known)
    except LookupError:
        raise UserError(
            f"{encoding}: no encoding of that name; such as utf-8, utf-16, latin-1, cp1252"
        ) from None
    except UnicodeError as error:
        where = ""
        if isinstance(error, UnicodeDecodeError):
            line = content.count(b"\n", 0, error.start) + 1
            where = f" (byte 0x{content[error.start]:02x} in line {line})"
        raise UserError(f"{path}: not in {known.upper()}{where}; save it as UTF-8") from None


def read_json(path: Path | str, expected: str) -> Any:
    """The content of a JSON file, as `read_text` reads its text. `expected` is what a message says should be there.

    A key that an object has twice is an error: only one of its values would count.
    """
    return _parsed(read_text(path), path, expected, lines=False)


def read_json_or_lines(path: Path | str, expected: str) -> Any:
    """As `read_json`; of a file with one JSON value a line, the list of them."""
    text = read_text(path)
    first, _, rest = text.lstrip().partition("\n")
    if rest.strip():
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            pass  # one value over many lines
        else:
            return [
                _parsed(line, f"{path}: line {number}", expected, lines=True)
                for number, line in enumerate(text.split("\n"), start=1)
                if line.strip()
            ]
    return _parsed(text, path, expected, lines=True)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _parsed(text: str, path: Path | str, expected: str, lines: bool) -> Any:
    """lines: whether the file may have one value a line."""
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise UserError(
            f"{path}: brackets within brackets, too deep to be read; expected {expected}"
        ) from None
    except ValueError as error:
        hint = ""
        if not text.strip():
            hint = ": the file is empty"
        elif text.lstrip().startswith("<"):
            hint = ": a web page or XML"
        elif (
            not lines
            and isinstance(error, json.JSONDecodeError)
            and error.msg == "Extra data"
            and error.lineno > 1
        ):
            hint = ": one JSON value a line; put them into one list"
        raise UserError(f"{path}: not JSON{hint} ({error}); expected {expected}") from None


def whole_characters(text: str) -> str:
    """The text with U+FFFD in the place of halves of characters (lone surrogates, as "\\ud83d"), which no file can hold.

    The same object where there are none.
    """
    return _HALVES.sub("\ufffd", text) if _HALVES.search(text) else text
