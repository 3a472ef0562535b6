"""A container's share of the processor reaches everything that chooses threads, workers and processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from diptych.features import processor
from diptych.model.command import doctor, options
from pipelines.runner.params import Machine
from pipelines.runner.processes import process_count
from pipelines.runner.stage import Stage
from pipelines.runner.threads import CORES_VARIABLE, available_cores

AUTO = Machine("auto", "auto", "cpu", "float32", 30.0, ".cache/features")


@pytest.fixture
def half_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores are seen, with half a core's time."""
    monkeypatch.delenv(CORES_VARIABLE, raising=False)
    monkeypatch.setattr(processor, "seen_cores", lambda: 4)
    monkeypatch.setattr(processor, "cpu_quota", lambda root=None: 0.5)


def test_a_stage(half_a_core: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("train_token", 0, AUTO, {})
    assert (stage.threads, stage.workers, process_count(stage)) == (1, 1, 1)
    monkeypatch.setattr(processor, "cpu_quota", lambda root=None: 2.5)
    assert (stage.threads, stage.workers) == (2, 2)
    monkeypatch.setattr(processor, "cpu_quota", lambda root=None: None)
    assert (stage.threads, stage.workers) == (4, 4)
    monkeypatch.setenv(CORES_VARIABLE, "3")
    assert available_cores() == 3


@pytest.fixture
def four_threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


def test_the_command(half_a_core: None, four_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    options.fit_threads()
    assert torch.get_num_threads() == four_threads, "who says how many gets them"
    monkeypatch.delenv("OMP_NUM_THREADS")
    finding = doctor.check_device("cpu", "float32")
    assert torch.get_num_threads() == 1
    assert "1 threads on 4 cores, of which this container gets the time of 0.5" in finding.message
