"""Text and JSON as people's programs write them: encodings, packed files, and files that are something else.

`diptych.eval.text_files` reads the same: neither package knows the other.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.features.errors import UserError

_HALVES = re.compile("[\ud800-\udfff]")
_KINDS = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run `git lfs pull`"),
    (b"PK\x03\x04", "a ZIP archive; unpack it and name the file in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and name the file in it"),
    (b"BZh", "packed by bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "packed by xz; unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it with unzstd"),
    (b"PAR1", "a Parquet file, not JSON"),
)


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file: UTF-8, UTF-16 or UTF-32, with or without a byte order mark, also packed by gzip.

    Raises UserError that says what the file is and what to do where it is missing, unreadable or something else.
    """
    text = _read_text(path)
    try:
        return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos :].lstrip()[:1] in ("{", "["):
            mend = "it is one JSON value a line: put them into one list"
        elif not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
            mend = "the file is cut short: download it again"
        else:
            mend = "download it again"
        raise UserError(f"{path}: not valid JSON ({error}); {mend}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not such JSON: brackets within brackets, too deep to be read") from error
    except ValueError as error:  # Python reads no numbers of thousands of digits
        raise UserError(f"{path}: not valid JSON ({error}); mend that number") from error


def read_json_lines(path: Path) -> list[tuple[int, Any]]:
    """The numbers, from 1, and values of a file's lines, one JSON value each; blank lines are passed over.

    A line that is no JSON has its own text as the value: its place is known, and who reads decides what it means.
    Raises UserError as `read_json` does where the file as a whole cannot be read.
    """
    found: list[tuple[int, Any]] = []
    # by line feeds alone: `splitlines` also cuts at U+2028 and the like, which stand within JSON's strings
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except (ValueError, RecursionError):
                found.append((number, line))
    return found


def whole_characters(text: str) -> str:
    """The text with U+FFFD in the place of halves of characters (lone surrogates, as "\\ud83d"), which no file can hold.

    The same object where there are none.
    """
    return _HALVES.sub("\ufffd", text) if _HALVES.search(text) else text


def json_kind(content: Any) -> str:
    """What a JSON file of a dataset is, in words, by its form."""
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        if "caption" in first and "image" in first:
            return "a flat list of images and captions, as BLIP's coco_karpathy_*.json"
        if "caption" in first and "image_id" in first:
            return "a list of captions alone, as COCO's results"
        return "a list"
    if not isinstance(content, dict):
        return "no object"
    images, annotations = content.get("images"), content.get("annotations")
    image = images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else {}
    if "sentences" in image:
        return "Karpathy's form (as dataset_coco.json)"
    if isinstance(annotations, list):
        row = annotations[0] if annotations and isinstance(annotations[0], dict) else {}
        for key, kind in (
            ("caption", "captions"),
            ("segments_info", "panoptic segments"),
            ("keypoints", "keypoints"),
            ("bbox", "instances"),
        ):
            if key in row:
                return f"COCO's {kind}"
    return f"an object of {', '.join(sorted(map(repr, content))[:4]) or 'nothing'}"


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation file; set it in the dataset section") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: packed by gzip, and damaged ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error
    if not content.strip():
        raise UserError(f"{path}: the file is empty; download it again")
    for start, kind in _KINDS:
        if content.startswith(start):
            raise UserError(f"{path}: {kind}")
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UserError(f"{path}: a web page or XML, not JSON; download it again")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at place {error.start}"
        raise UserError(
            f"{path}: not valid JSON: no {encoding.upper()} ({byte}); save it as UTF-8"
        ) from error
