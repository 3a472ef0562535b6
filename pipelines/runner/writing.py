"""Writing files and folders so that they are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(path: str) -> Iterator[Path]:
    """A place to write the file or folder `path`; it gets its name only when the block ends without an error."""
    final = Path(path)
    partial = final.with_name(f".partial-{final.name}")
    final.parent.mkdir(parents=True, exist_ok=True)
    remove(partial)
    try:
        yield partial
        if (
            final.is_dir()
        ):  # a folder cannot be replaced in one step; DVC has removed it already in a normal run
            remove(final)
        os.replace(partial, final)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
