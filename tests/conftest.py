"""Clones of this repository for the tests of the pipeline."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from pipeline_clone import Clone, make_clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A fresh clone with the smoke parameters."""
    fresh = make_clone(tmp_path / "clone")
    fresh.set_params()
    return fresh


@pytest.fixture(scope="session")
def finished_clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after a whole `dvc repro` with the smoke parameters; tests copy it before they change anything.

    Processes that run the tests side by side make it once: the first one that wants it, while others that do wait. Each
    has a copy, as DVC's locks would be seen in copies of a clone in which another process runs it.
    """
    own = tmp_path_factory.getbasetemp()
    made = Clone((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished_once")
    with made.folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.folder.exists():
            making = make_clone(tmp_path_factory.mktemp("making") / "clone")
            making.set_params()
            making.repro()
            making.folder.rename(made.folder)
    return made.copy(tmp_path_factory.mktemp("finished") / "clone")
