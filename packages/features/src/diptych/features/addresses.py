"""Files elsewhere, by fsspec addresses such as `s3://bucket/folder`, `gs://...` or `memory://...`: reading that outlives a bad connection.

A package that knows the protocol has to be installed (`s3fs`, `gcsfs`, ...); what it needs to know, such as an endpoint, fsspec reads
from its own configuration (`FSSPEC_S3_ENDPOINT_URL`, or a file in `~/.config/fsspec`).
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from diptych.features.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0  # seconds
PIECE = 8 * 2**20  # bytes of a large file that are asked for at once
# What another try does not mend: settings of the client, by the names that botocore gives them, and requests that the server
# refuses to understand (another region's bucket, for instance).
_LASTING_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
_LASTING_NUMBERS = {
    errno.EINVAL,
    errno.EPERM,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    getattr(errno, "EREMCHG", errno.EINVAL),
}


def is_address(place: object) -> bool:
    """Whether a place is an address and no path."""
    return "://" in str(place)


class Elsewhere:
    """A folder at an address. Travels to other processes, where it connects anew."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._open: tuple[int, AbstractFileSystem, str] | None = None  # of which process

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
        """Bytes from `start` to before `end`. A connection that breaks off in between counts as a try; UserError where the file ends
        before."""

        def work(system: AbstractFileSystem, path: str) -> bytes:
            try:
                found = system.cat_file(path, start=start, end=end)
            except OSError as error:
                if error.errno != errno.EINVAL or "range" not in str(error):
                    raise
                found = b""  # how S3 answers where a file ends before `start`
            if len(found) != end - start:
                size = int(system.info(path)["size"])
                if size < end:
                    raise UserError(
                        f"{self.address}/{name}: {size} bytes, at least {end} were expected: damaged, or another file; remove what is "
                        "there and publish again"
                    )
                raise OSError(f"{len(found)} of {end - start} bytes came")
            return found

        return self._tried(name, work)

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The `size` bytes of a large file one piece after the other, each by as many tries as it takes."""
        for start in range(0, size, PIECE):
            yield self.read_range(name, start, min(start + PIECE, size))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

        def work(system: AbstractFileSystem, path: str) -> int | None:
            try:
                return int(system.info(path)["size"])
            except FileNotFoundError as error:
                if is_missing(error, path):
                    return None
                raise

        return self._tried(name, work)

    def names(self) -> list[str]:
        """Names of the files that lie there, sorted; none where there is no such folder."""

        def work(system: AbstractFileSystem, path: str) -> list[str]:
            folder = path.rstrip("/")
            try:
                found = system.ls(folder, detail=False)
            except FileNotFoundError as error:
                if is_missing(error, folder):
                    return []
                raise
            return sorted(place.rstrip("/").rpartition("/")[2] for place in found)

        return self._tried("", work)

    def write(self, name: str, local: str) -> None:
        """Copy a local file there."""
        self._tried(name, lambda system, path: system.put_file(local, path))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a whole file."""
        self._tried(name, lambda system, path: system.pipe_file(path, content))

    def _system(self) -> tuple[AbstractFileSystem, str]:
        # connections belong to the process that made them, also where another is its fork
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), *self._connect())
        return self._open[1:]

    def _connect(self) -> tuple[AbstractFileSystem, str]:
        # Listings that are kept would hide what others write; folders of a disk have to be there, those of a bucket are part of names.
        own = {"use_listings_cache": False}
        if self.address.startswith("file://") or not is_address(self.address):
            own["auto_mkdir"] = True
        try:
            from fsspec.core import url_to_fs

            system, root = url_to_fs(self.address, **own)
        except ImportError as error:
            raise UserError(f"{self.address}: {error}: pip install {_package(self.address)}") from None
        except ValueError as error:
            raise UserError(f"{self.address}: no such kind of address ({error})") from None
        # Tried again here: multiplied, it takes an hour to say that a server does not answer.
        if hasattr(system, "retries"):
            system.retries = 1
        return system, root

    def _tried(self, name: str, work: Callable[[AbstractFileSystem, str], T]) -> T:
        """`work` on a file, again and again where it fails by what may pass, waiting twice as long each time."""
        place = f"{self.address}/{name}" if name else self.address
        system, root = self._system()
        for attempt in range(TRIES):
            try:
                return work(system, f"{root}/{name}" if name else root)
            except UserError:
                raise
            except FileNotFoundError as error:
                missing = is_missing(error, f"{root}/{name}")
                raise UserError(f"{place}: {'there is no such file' if missing else error}") from None
            except PermissionError as error:
                raise UserError(
                    f"{place}: access is refused ({error}); look at your keys, and whether they may list, read and write there"
                ) from None
            except Exception as error:  # every protocol has errors of its own
                if _lasts(error):
                    raise UserError(
                        f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"
                    ) from None
                if attempt + 1 == TRIES:
                    raise UserError(
                        f"{place}: {TRIES} tries failed, the last by {type(error).__name__} ({error}); look at "
                        "the connection and run again: nothing is lost"
                    ) from error
            time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError


def is_missing(error: FileNotFoundError, path: str) -> bool:
    """Whether the file itself is missing, as errors say that end in its path; others say that there is no bucket."""
    return str(error).rstrip("'\"").endswith(path.strip("/"))


def _lasts(error: Exception) -> bool:
    """Whether another try would fail alike."""
    if isinstance(error, (IsADirectoryError, NotADirectoryError, ValueError, TypeError)):
        return True
    if isinstance(error, OSError):
        return error.errno in _LASTING_NUMBERS
    return type(error).__name__ in _LASTING_NAMES


def _package(address: str) -> str:
    """What to install for the protocol of an address."""
    try:
        from fsspec.registry import known_implementations
    except ImportError:
        return "'diptych-features[remote]'"
    package = known_implementations[address.partition("://")[0]]["class"].partition(".")[0]
    return "fsspec[full]" if package == "fsspec" else package
