"""Token-level training on two processes: for DVC one stage, with one message, and a rerun that goes on."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pipeline_clone import Clone
from waiting import HANG_SECONDS, environment_with_modules, wait_until

from pipelines.runner import processes
from pipelines.runner.params import Machine, ParameterError
from pipelines.runner.processes import _failure, process_count
from pipelines.runner.stage import Stage


def losses(clone: Clone) -> list[dict[str, float]]:
    with (clone.folder / "plots/train_token.csv").open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def test_two_processes_are_one_stage(finished_clone: Clone, tmp_path: Path, module_here) -> None:
    alone, shared = (finished_clone.copy(tmp_path / name) for name in ("alone", "shared"))
    steps = "train_token.training.steps=16"
    alone.set_params(steps, "machine.precision=float32")
    done = module_here(alone.folder, "pipelines.train_token")
    assert done.status == 0, done.stderr[-3000:]

    settings = (steps, "machine.precision=float32", "machine.processes=2")
    shared.set_params(*settings, "machine.checkpoint_seconds=0")
    command = shared.command("python", "-m", "pipelines.train_token")
    with shared.held_trainings(saves=5):
        stage = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: list((shared.folder / ".cache/training/train_token").rglob("held")), stage)
        children = psutil.Process(stage.pid).children()
        assert len(children) == 2
        os.kill(children[1].pid, signal.SIGKILL)
        message = stage.communicate(timeout=HANG_SECONDS)[1]
    assert stage.returncode == 1
    assert "Traceback" not in message
    assert message.strip().splitlines()[-1].startswith("train_token: process 1 was ended by SIGKILL")
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)

    shared.set_params(*settings)
    resumed = shared.run("python", "-m", "pipelines.train_token")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert resumed.stderr.count("token-level training:   0%") == 0, "it began anew"
    for row, expected in zip(losses(shared), losses(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    assert list((shared.folder / ".cache/training/train_token").rglob("*.pt")) == []


def test_a_users_slip_is_one_line_whatever_the_number_of_processes(
    finished_clone: Clone, tmp_path: Path
) -> None:
    clone = finished_clone.copy(tmp_path / "clone")
    clone.set_params("machine.processes=2", "train_token.training.learning_rate=1e30")
    done = clone.run("python", "-m", "pipelines.train_token")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("loss nan") == 1
    assert "train_token: token-level training: loss nan" in done.stderr.strip().splitlines()[-1]


def test_processes_follow_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def count(device: str, processes: int | str, threads: int = 2) -> int:
        machine = Machine(threads, 1, device, "auto", 30.0, ".cache/features", processes)
        return process_count(Stage("train_token", 0, machine, {}))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [count("cpu", 1), count("cpu", "auto"), count("cpu", 2)] == [1, 2, 2]
    assert [count("cuda", 1), count("cuda", "auto"), count("cuda", 2)] == [1, 4, 2]
    assert [count("cuda:1", 1), count("cuda:1", "auto")] == [1, 1]
    memory = SimpleNamespace(total=16 * 2**30, available=0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert [count("cpu", "auto", threads) for threads in (2, 8)] == [2, 2]
    assert [count("cpu", "auto", 1), count("cpu", 1, 8)] == [1, 1]
    memory.total = 6 * 2**30
    assert count("cpu", "auto", 8) == 1
    with pytest.raises(ParameterError, match="machine.processes is 2, but machine.device is cuda:1"):
        count("cuda:1", 2)


def test_a_killed_process_is_named_before_those_that_were_ended_for_it() -> None:
    def ended_by(number: signal.Signals) -> SimpleNamespace:
        return SimpleNamespace(
            exitcode=-number, signal_name=lambda: number.name, error_file_data={"message": ""}
        )

    both = {0: ended_by(signal.SIGTERM), 1: ended_by(signal.SIGKILL)}
    assert str(_failure(both)).startswith("process 1 was ended by SIGKILL")
    assert str(_failure({0: both[0]})).startswith("process 0 was ended by SIGTERM")


# starts two processes that would work for an hour, says their numbers and waits
PARENT = """
import subprocess, sys
child = "from pipelines.runner.threads import end_with_parent; end_with_parent(); print(flush=True); import time; time.sleep(3600)"
started = [subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) for _ in range(2)]
for process in started:
    process.stdout.readline()
print(*(process.pid for process in started), flush=True)
sys.stdin.readline()
"""


def test_processes_end_with_a_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment_with_modules()
    )
    assert parent.stdout is not None
    children = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
    assert len(children) == 2 and all(child.is_running() for child in children)
    parent.kill()
    parent.communicate()

    def ended(child: psutil.Process) -> bool:
        try:
            return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(lambda: all(map(ended, children)))


def test_each_of_several_processes_ends_with_the_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """From before it works."""
    done: list[str] = []
    stage = SimpleNamespace(threads=2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(processes.signal, "signal", lambda *_: None)
    monkeypatch.setattr(processes, "end_with_parent", lambda: done.append("watches"))
    monkeypatch.setattr(processes, "prepare_process", lambda threads: done.append(f"{threads} threads"))
    monkeypatch.setattr(processes.stages, "read_stage", lambda *_: (stage, None))
    processes.run("train_token", int, lambda *_: done.append("works"))
    assert done == ["watches", "1 threads", "works"]


def test_a_signal_ends_the_stage_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's agent raises it as an exception of its own, after it has ended the processes."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.launcher import api

    def signalled(number: signal.Signals) -> None:
        def launch(*_: str) -> None:
            raise SignalException("ended", sigval=number)

        monkeypatch.setattr(api, "elastic_launch", lambda *_: launch)
        processes._start_and_wait("train_token", 2)

    monkeypatch.setattr(logging, "disable", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        signalled(signal.SIGTERM)
    assert ended.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT)
