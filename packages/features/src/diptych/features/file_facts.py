"""What was found in files that were read before, so that 20 GB of pictures are hashed once and not at every change.

An append-only file of JSON lines, one for each file that was read: where it is, its size and modification time, and
what was found. A file of another size or time is another file. A line that a kill cut short, or that two runs wrote
into each other, is no such record and is ignored: its file is read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from diptych.features.errors import UserError

VERSION = 1


class FileFacts:
    """Facts by file, kept in the file `path` or, where that is null, for this process only. A context manager.

    Every record is handed to the system at once, so that a process that dies loses none. Several processes may
    append to one file. Raises UserError when `path` cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._facts: dict[str, tuple[int, int, dict[str, Any]]] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="ascii", errors="replace")  # noqa: SIM115  (closed by __exit__)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); change its owner or mode"
            ) from error
        self._file.seek(0)
        line = "\n"
        for line in self._file:
            self._read(line)
        if not line.endswith("\n"):  # what a kill cut short must not spoil the next record
            self._file.write("\n")

    def get(self, file: Path, status: os.stat_result) -> dict[str, Any] | None:
        """What was found in `file`, whose `os.stat` is now `status`; None if it was not read since it changed."""
        size, time, facts = self._facts.get(os.path.abspath(file), (-1, -1, {}))
        return facts if (size, time) == (status.st_size, status.st_mtime_ns) else None

    def add(self, file: Path, status: os.stat_result, facts: Mapping[str, Any]) -> None:
        """Remember what was found in `file`; `status` is its `os.stat` from before it was read."""
        path, size, time = os.path.abspath(file), status.st_size, status.st_mtime_ns
        self._facts[path] = (size, time, dict(facts))
        if self._file is not None:
            self._file.write(json.dumps([VERSION, path, size, time, dict(facts)]) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, line: str) -> None:
        try:
            version, path, size, time, facts = json.loads(line)
        except (ValueError, TypeError):
            return
        # two records in one line can be JSON by chance, but then not of these types
        if version == VERSION and isinstance(path, str) and isinstance(facts, dict):
            self._facts[path] = (size, time, facts)
