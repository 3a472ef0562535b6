"""The folder of embeddings that all runs of `diptych-eval images` share where they name none."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterable
from pathlib import Path


class SharedStore:
    """What a run used goes when it has ended, but never while another run, which may read it, goes on.

    A run holds a shared lock on the folder's file `ended` for as long as it lives. The file names what runs used that ended
    while others went on; what a killed run made is not among it and stays for the same command.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ended = (folder / "ended").open("a+", encoding="utf-8")
        with contextlib.suppress(OSError):  # a file system without locks: then nothing is deleted below
            fcntl.flock(self._ended, fcntl.LOCK_SH)

    def forget(self, parts: Iterable[Path]) -> None:
        """Delete the files that this run used and those of the runs that ended before; the last of several runs does it."""
        with self._ended as ended:
            ended.writelines(f"{part.name}\n" for part in parts)
            ended.flush()
            try:
                fcntl.flock(ended, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            ended.seek(0)
            for name in ended.read().split():
                (self.folder / name).unlink(missing_ok=True)
            ended.truncate(0)
