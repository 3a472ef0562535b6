"""Training checkpoints: written atomically, the last two kept, a torn one skipped."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

KEEP = 2
TORN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


class TrainingCheckpoints:
    """The checkpoints of one training run, in a folder of their own.

    A state is a dict of tensors, numbers, strings, lists and dicts, since it is read with ``weights_only=True``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any]) -> None:
        """Write ``state`` as the newest checkpoint and drop all but the last two.

        The file appears under its name only when it is complete and on disk, so a crash at any moment leaves the
        previous checkpoint readable. OSError where it cannot be written (a full disk); then nothing of it is left.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = self._paths()
        number = int(paths[0].stem.split("-")[1]) + 1 if paths else 1
        path = self.folder / f"checkpoint-{number:08d}.pt"
        temporary = path.with_suffix(".partial")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            # torch.save reports a full disk as a RuntimeError about its own positions in the file
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise cause from None
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        for old in self._paths()[KEEP:]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """Return the newest readable state, on the CPU, or None if there is none."""
        for path in self._paths():
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except TORN as error:  # the checkpoint before it is whole
                warnings.warn(f"{path}: unreadable checkpoint skipped ({error})", stacklevel=2)
        return None

    def _paths(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)
