"""How many processes of a training a cluster has room for, and how often lost ones are started again: with a stand-in for Ray."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from diptych.model.errors import UserError
from pipelines.runner import ray_processes
from pipelines.runner.params import Machine, ParameterError
from pipelines.runner.ray_processes import MOST_LOSSES, Work, _room, process_count


def machine(processes: int | str) -> Machine:
    return Machine(1, 1, "auto", "float32", 30.0, ".cache/features", processes, ray_address="auto")


class Cluster:
    """What Ray says about a cluster. resources: from one question to the next; the last ones stay."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self.left = list(resources)

    def cluster_resources(self) -> dict[str, float]:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def nodes(self) -> list[dict[str, Any]]:
        """Two with cores, one without, one that is lost."""
        alive = [{"Alive": True, "Resources": resources} for resources in ({"CPU": 2.0}, {"CPU": 2.0}, {})]
        return [*alive, {"Alive": False, "Resources": {"CPU": 8.0}}]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that were waited, in which no time passes but on the clock."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, monotonic=lambda: sum(waited))
    monkeypatch.setattr(ray_processes, "time", clock)
    yield waited


def has(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    monkeypatch.setitem(sys.modules, "ray", Cluster(*resources))


def test_a_process_for_each_gpu_or_node(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, {})
    assert process_count(machine("auto"), "cuda", 8) == 8
    assert process_count(machine("auto"), "cpu", 4) == 2, "nodes that are alive and have cores"
    assert process_count(machine("auto"), "cpu", 1) == 1
    assert [process_count(machine(count), "cpu", 4) for count in (1, 4)] == [1, 4]
    with pytest.raises(ParameterError, match="machine.processes is 5, and the cluster of machine.ray_address has 4 CPUs; use auto"):
        process_count(machine(5), "cpu", 4)
    with pytest.raises(ParameterError, match="has 1 GPUs"):
        process_count(machine(2), "cuda", 1)


def test_what_is_left_of_a_cluster_goes_on(monkeypatch: pytest.MonkeyPatch, slept: list[float], capsys) -> None:
    has(monkeypatch, {"CPU": 8.0, "GPU": 4.0})
    assert _room(4, "GPU", "go on") == 4 and _room(2, "GPU", "go on") == 2
    assert slept == [] and capsys.readouterr().err == ""
    has(monkeypatch, {"GPU": 3.0}, {"GPU": 3.0}, {"GPU": 4.0})
    assert _room(4, "GPU", "go on") == 4, "a lost node was replaced"
    assert 0 < sum(slept) < ray_processes.REPLACEMENT_SECONDS and capsys.readouterr().err == ""
    has(monkeypatch, {"GPU": 3.0})
    assert _room(4, "GPU", "go on") == 3
    assert sum(slept) >= ray_processes.REPLACEMENT_SECONDS
    assert capsys.readouterr().err == "the cluster has room for 3 of 4 processes\n"
    has(monkeypatch, {"CPU": 8.0})
    with pytest.raises(UserError, match="machine.ray_address: the cluster has no GPU left; when it has, go on"):
        _room(4, "GPU", "go on")


class RayError(Exception):
    """Ray's words on a process that is no more."""


class TrainingFailedError(Exception):
    """Ray Train's own end."""


class WorkerGroupError(TrainingFailedError):
    """Processes that failed, by their rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        self.worker_failures = failures


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray Train: how many processes each fit was asked for, and how the fits end, of which the last one repeats."""
    told = SimpleNamespace(counts=[], ends=[])

    def make(*_: object, scaling_config: SimpleNamespace, **__: object) -> SimpleNamespace:
        def fit() -> None:
            told.counts.append(scaling_config.num_workers)
            end = told.ends.pop(0) if len(told.ends) > 1 else told.ends[0]
            if end is not None:
                raise end

        return SimpleNamespace(fit=fit)

    configs = dict.fromkeys(("FailureConfig", "RunConfig", "ScalingConfig"), lambda **options: SimpleNamespace(**options))
    contents: dict[str, dict[str, Any]] = {
        "ray.exceptions": {"RayError": RayError},
        "ray.train": configs,
        "ray.train.torch": {"TorchConfig": lambda *_, **__: None, "TorchTrainer": make},
        "ray.train.v2.api.exceptions": {"TrainingFailedError": TrainingFailedError, "WorkerGroupError": WorkerGroupError},
        "ray.train.v2._internal.exceptions": {"RayTrainError": RayError},
    }
    for name, content in contents.items():
        parts = name.split(".")
        for folder in (".".join(parts[:count]) for count in range(1, len(parts))):
            if folder not in contents:
                monkeypatch.setitem(sys.modules, folder, ModuleType(folder))
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(content)
    return told


def run(trainer: SimpleNamespace, *ends: Exception | None) -> None:
    """A training of two processes whose starts end so."""
    trainer.ends = list(ends)
    work = Work("train_token", ("", ""), ("", ""), (), (), ".", machine(2), "printed")
    ray_processes._run(work, 2, "cpu", Path("/nowhere"), None)


def test_lost_processes_are_started_again(trainer, monkeypatch: pytest.MonkeyPatch, slept: list[float], capsys) -> None:
    has(monkeypatch, {"CPU": 1.0})
    run(trainer, WorkerGroupError({1: RayError()}), None)
    assert trainer.counts == [2, 1], "on what is left"
    assert slept[0] == ray_processes.NOTICE_SECONDS
    assert f"process 1 was lost; from the last checkpoint on (1 of at most {MOST_LOSSES - 1} times)" in capsys.readouterr().err
    run(trainer, TrainingFailedError("the head is gone"), None)
    assert "Ray Train was lost (the head is gone); from the last" in capsys.readouterr().err


def test_losses_without_end_are_ended(trainer, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    has(monkeypatch, {"CPU": 2.0})
    with pytest.raises(UserError, match=r"lost 5 times, the last time: process 0 was lost; .*, then `dvc repro` goes on from the last checkpoint"):
        run(trainer, WorkerGroupError({0: RayError()}))
    assert trainer.counts == [2] * MOST_LOSSES


def test_what_the_work_raises_is_not_started_again(trainer, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    has(monkeypatch, {"CPU": 2.0})
    for error, raised in ((UserError("loss nan"), UserError), (ZeroDivisionError(), RuntimeError)):
        with pytest.raises(raised):
            run(trainer, WorkerGroupError({0: error}))
    assert trainer.counts == [2, 2]
