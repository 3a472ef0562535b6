"""Who is working on what: several runs, on one machine or many, share a feature store without doing work twice.

Every run holds an exclusive `flock` on its own file for as long as it lives; the system lets go of it when the
process dies, however it dies. The file lists what the run is working on. A run that wants work takes the store's
one lock for a moment, reads what the living have claimed, and claims the rest. No clock is compared and nothing has
to time out. (NFS version 4 carries these locks between hosts.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self


class Claims:
    """The claims of this run on `folder`, a directory that all runs share. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._mine: set[str] = set()
        self._file: IO[str] | None = None
        with self._exclusive():
            file = open(self._path, "w+", encoding="ascii")  # noqa: SIM115  (open, and so locked, until close)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                self._path.unlink(missing_ok=True)
                _tell_without_locks(self.folder, error)
                return
            self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(self, keys: Collection[str]) -> set[str]:
        """Those of `keys` that no other living run has claimed; they are this run's until it releases them.

        A run that died claims nothing. Where the file system knows no locks, every key is granted.
        """
        if self._file is None:
            return set(keys)
        with self._exclusive():
            granted = set(keys) - self._claimed_by_others()
            self._mine |= granted
            self._write()
        return granted

    def take(self, keys: Sequence[str], stored: Callable[[], Collection[str]]) -> tuple[list[str], list[str]]:
        """Those of `keys` that are this run's until it releases them, and those that other living runs work on.

        stored: looks up what is stored by now; that is neither.
        """
        granted = self.claim(keys)
        # Looked up after claiming: what was stored before the claim is seen, what comes later is ours.
        known = stored()
        self.release({key for key in granted if key in known})
        missing = [key for key in keys if key not in known]
        return [key for key in missing if key in granted], [key for key in missing if key not in granted]

    def release(self, keys: Collection[str]) -> None:
        """Give back claimed keys, after what was made of them has been stored."""
        self._mine -= set(keys)
        if self._file is not None:
            with self._exclusive():
                self._write()

    def close(self) -> None:
        """Give back everything."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.claim"

    def _claimed_by_others(self) -> set[str]:
        claimed: set[str] = set()
        for path in self.folder.glob("*.claim"):
            if path == self._path:
                continue
            with suppress(FileNotFoundError), open(path, encoding="ascii") as file:
                if _locked_by_another(file):
                    claimed.update(file.read().split())
                else:
                    path.unlink(missing_ok=True)
        return claimed

    def _write(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write("\n".join(sorted(self._mine)))
        self._file.flush()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """The store's one lock; nobody keeps it for longer than it takes to read and write some small files."""
        with open(self.folder / "lock", "a") as file:
            with suppress(PermissionError):  # it is the group's, whatever the umask of who was first
                os.fchmod(file.fileno(), 0o664)
            with suppress(OSError):  # __init__ has said that there are no locks here
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _locked_by_another(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def _tell_without_locks(folder: Path, error: OSError) -> None:
    print(
        f"{folder}: this file system has no locks ({error.strerror}); two runs at once will not harm each other, "
        "but may extract an image twice",
        file=sys.stderr,
    )
