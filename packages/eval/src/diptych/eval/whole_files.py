"""Files that are whole or not there: written beside their place, and moved to it when they are complete."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from diptych.eval.errors import UserError


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to: it takes the place of `path` when the block ends, and goes when that raises."""
    # of its own name, for another process may write the same file
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_output(path: Path, content: bytes) -> None:
    """Write what a command was asked for. Raises UserError where that fails; then `path` is what it was."""
    try:
        with written_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error})") from None
