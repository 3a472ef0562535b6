"""Files elsewhere, by fsspec addresses such as `s3://bucket/folder`, `gs://...` or `memory://...`: reading that outlives a bad connection.

A package that knows the protocol has to be installed (`s3fs`, `gcsfs`, ...); what it needs to know, such as an endpoint, fsspec reads
from its own configuration (`FSSPEC_S3_ENDPOINT_URL`, or a file in `~/.config/fsspec`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from diptych.features.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0  # seconds


def is_address(place: object) -> bool:
    """Whether a place is an address and no path."""
    return "://" in str(place)


class Elsewhere:
    """A folder at an address. Travels to other processes, where it connects anew."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._open: tuple[AbstractFileSystem, str] | None = None

    def __getstate__(self) -> dict[str, str]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["address"])  # type: ignore[misc]

    def __str__(self) -> str:
        return self.address

    def read(self, name: str) -> bytes:
        """A whole file. UserError where there is none, or no try succeeds."""
        return self._tried(name, lambda system, path: system.cat_file(path))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes from `start` to before `end`. A connection that breaks off in between counts as a try."""

        def work(system: AbstractFileSystem, path: str) -> bytes:
            found = system.cat_file(path, start=start, end=end)
            if len(found) != end - start:
                raise OSError(f"{len(found)} of {end - start} bytes came")
            return found

        return self._tried(name, work)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

        def work(system: AbstractFileSystem, path: str) -> int | None:
            try:
                return int(system.info(path)["size"])
            except FileNotFoundError:
                return None

        return self._tried(name, work)

    def write(self, name: str, local: str) -> None:
        """Copy a local file there."""
        self._tried(name, lambda system, path: system.put_file(local, path))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a whole file."""
        self._tried(name, lambda system, path: system.pipe_file(path, content))

    def _system(self) -> tuple[AbstractFileSystem, str]:
        if self._open is None:
            from fsspec.core import url_to_fs

            try:
                # folders of a disk have to be there, those of a bucket are part of names
                own = {"auto_mkdir": True} if self.address.startswith("file://") else {}
                self._open = url_to_fs(self.address, **own)
            except ImportError as error:
                raise UserError(f"{self.address}: {error}") from None
            except ValueError as error:
                raise UserError(f"{self.address}: no such kind of address ({error})") from None
        return self._open

    def _tried(self, name: str, work: Callable[[AbstractFileSystem, str], T]) -> T:
        """`work` on a file, again and again where it fails by what may pass, waiting twice as long each time."""
        system, root = self._system()
        for attempt in range(TRIES):
            try:
                return work(system, f"{root}/{name}")
            except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                what = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
                raise UserError(f"{self.address}/{name}: {what}") from None
            except Exception as error:  # every protocol has errors of its own
                if attempt + 1 == TRIES:
                    raise UserError(
                        f"{self.address}/{name}: {TRIES} tries failed, the last by {type(error).__name__} ({error}); look at "
                        "the connection and run again: nothing is lost"
                    ) from error
            time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError
