"""A container's share of processor and memory reaches everything that chooses threads, workers, processes and jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from diptych.eval import processor as processor_of_eval
from diptych.eval.command import app as eval_command
from diptych.eval.images import metrics
from diptych.features import processor
from diptych.model.command import doctor
from pipelines.runner import memory as runner_memory
from pipelines.runner.memory import memory
from pipelines.runner.params import Machine
from pipelines.runner.processes import process_count
from pipelines.runner.stage import Stage
from pipelines.runner.threads import CORES_VARIABLE, available_cores
from pipelines.tables.jobs import default_jobs

AUTO = Machine("auto", "auto", "cpu", "float32", 30.0, ".cache/features", "auto")


@pytest.fixture
def half_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores are seen, with half a core's time."""
    monkeypatch.delenv(CORES_VARIABLE, raising=False)
    for module in (processor, processor_of_eval):
        monkeypatch.setattr(module, "seen_cores", lambda: 4)
        monkeypatch.setattr(module, "cpu_quota", lambda root=None: 0.5)


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
    processor.fit_torch_threads()
    assert torch.get_num_threads() == four_threads, "who says how many gets them"
    monkeypatch.delenv("OMP_NUM_THREADS")
    finding = doctor.check_device("cpu", "float32")
    assert torch.get_num_threads() == 1
    assert "1 threads on 4 cores, of which this container gets the time of 0.5" in finding.message


def test_the_metrics(
    half_a_core: None, four_threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`diptych-eval images` decodes, and torch computes, with as many threads as it may use."""
    from PIL import Image

    for name in ("generated", "real"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    taken: list[tuple[int, int]] = []

    def measure(kinds, captions, clips, words, settings, store, inception):
        taken.append((settings.threads, torch.get_num_threads()))
        return [], {}

    monkeypatch.setattr(metrics, "measure_images", measure)
    monkeypatch.delenv(eval_command.INCEPTION_VARIABLE, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = ["images", str(tmp_path / "generated"), str(tmp_path / "real"), "--device", "cpu"]
    eval_command.main(command)
    eval_command.main([*command, "--threads", "3"])
    assert taken == [(1, 1), (3, 1)]


GROUPS = {  # where a group's files lie, and their names
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file", "max"),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", str(2**63 - 4096)),
}


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


def limit(root: Path, version: int, group: str, limit: int | None, used: int, files: int = 0) -> None:
    """Of a group, in MiB; None is no limit."""
    top, limit_file, used_file, files_read, without = GROUPS[version]
    folder = root / top / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(f"{without if limit is None else limit * 2**20}\n")
    (folder / used_file).write_text(f"{used * 2**20}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{files_read} {files * 2**20}\nactive_file 2\n")


def container(root: Path, version: int) -> Path:
    """A process in the group /pod/container, on a machine of 16 GiB."""
    (root / "proc/self").mkdir(parents=True)
    cgroup = "0::/pod/container\n" if version == 2 else "5:memory:/pod/container\n4:cpu:/elsewhere\n0::/init\n"
    (root / "proc/self/cgroup").write_text(cgroup)
    mount = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,memory"
    (root / "proc/self/mountinfo").write_text(f"30 23 0:26 / /{GROUPS[version][0]} rw - {mount}\n")
    return root


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GiB, of which 15 are free."""
    found = SimpleNamespace(total=16 * 2**30, available=15 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


def test_memory_of_a_container(machine: None, tmp_path: Path, version: int) -> None:
    root = container(tmp_path, version)
    limit(root, version, "pod/container", None, 100)
    assert memory(root) == (16, 15), "no limit"
    limit(root, version, "pod", 4096, 3072)
    assert memory(root) == (4, 1), "the least limit of the groups above counts"
    limit(root, version, "pod", 4096, 3072, files=1024)
    assert memory(root) == (4, 2), "files read before are no used memory"
    limit(root, version, "pod/container", 2048, 3000)
    assert memory(root) == (2, 0)
    assert memory(root / "no/linux") == (16, 15)


def test_memory_decides_how_much_runs_side_by_side(
    machine: None, tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CORES_VARIABLE, raising=False)
    monkeypatch.setattr("pipelines.tables.jobs.available_cores", lambda: 4)
    root = container(tmp_path, version)
    groups = processor.control_groups
    monkeypatch.setattr(runner_memory, "control_groups", lambda controller, _: groups(controller, root))
    stage = Stage("train_token", 0, replace(AUTO, threads=4), {})
    assert (process_count(stage), default_jobs(AUTO, 0, 9)) == (2, 2), "15 GiB, 6 an item"
    limit(root, version, "pod", 7168, 0)
    assert (process_count(stage), default_jobs(AUTO, 0, 9)) == (1, 1)
