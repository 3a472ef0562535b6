"""Read before any test imports torch, because OpenMP looks at its environment when it is loaded."""

import os
from pathlib import Path

import pytest

# As in the pipeline: idle threads that spin make small tests forty times slower on cores that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 samples to train on and 5 others."""
    from test_shards import make_inputs, write

    folder = tmp_path_factory.mktemp("shards")
    write(make_inputs(tmp_path_factory.mktemp("inputs") / "inputs"), folder)
    return folder
