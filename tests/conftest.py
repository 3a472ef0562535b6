"""Clones of this repository for the tests of the pipeline."""

from __future__ import annotations

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
    """A clone after a whole `dvc repro` with the smoke parameters; tests copy it before they change anything."""
    finished = make_clone(tmp_path_factory.mktemp("finished") / "clone")
    finished.set_params()
    finished.repro()
    return finished
