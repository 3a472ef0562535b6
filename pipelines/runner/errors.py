"""How whatever runs here ends: an error that the user can mend is one line, which names the file or key and the mend."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.runner.params import PACKAGE_ERRORS, ParameterError


@dataclass(frozen=True)
class Mends:
    """What messages tell to do. command: that goes on, and makes what is missing. memory: where there is too little."""

    command: str
    memory: str


@contextlib.contextmanager
def one_line_errors(name: str, mends: Mends | None = None) -> Iterator[None]:
    """End the process with status 1, and the 143 of SIGTERM, as whatever is called `name` should.

    An error that the user can mend is one line on stderr: the file or key, and the mend. Other errors are defects of
    this project and keep their traceback.
    """
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # as an exception, so that partial files are removed
    try:
        yield
    except KeyboardInterrupt:
        _fail(name, "interrupted: the same command goes on from the last checkpoint", status=130)
    except Exception as error:
        message = explain(error, name, mends)
        if message is None:
            raise
        _fail(name, message)


def explain(error: BaseException, name: str, mends: Mends | None = None) -> str | None:
    """One line for an error that the user can mend, None for a defect of this project. mends: by default a stage's."""
    mends = mends or Mends("dvc repro", f"lower {name}'s batch size in params.yaml, or close other programs")
    if isinstance(error, (ParameterError, *PACKAGE_ERRORS)):
        return str(error)
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text or shutil.disk_usage(".").free < 1 << 20:
        return f"the disk is full: free some space, then `{mends.command}` goes on; nothing half-written was kept"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} is missing: `{mends.command}` makes what a stage reads"
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: permission denied: change its owner or mode"
    if isinstance(error, OSError) and error.errno == errno.EROFS and error.filename:
        return f"{error.filename}: its file system is read-only: mount it for writing"
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return f"out of memory: {mends.memory}"
    return None


def _fail(name: str, message: str, status: int = 1) -> None:
    # DVC prints "failed to reproduce" after this; the reason is the line that stands alone
    print(f"\n{name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
