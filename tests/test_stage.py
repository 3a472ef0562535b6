"""The runner of all stages: whole outputs or none, checkpoints under the right key, one line for every user error."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.runner import stage as stages
from pipelines.runner.params import Machine, ParameterError
from pipelines.runner.stage import Stage
from pipelines.tables import item as items

MACHINE = Machine(1, 1, "cpu", "float32", 30.0, ".cache/features")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with one stage `train`, whose code is what code.txt says."""
    monkeypatch.chdir(tmp_path)
    for variable in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # `run` sets them; afterwards they are as before
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/a.json").write_text("a")
    (tmp_path / "code.txt").write_text("a")
    monkeypatch.setattr("pipelines.runner.code.code_of", lambda dep: {dep: (tmp_path / "code.txt").read_text()})
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: train, deps: [data.txt, configs, code/train.json]}}")
    (tmp_path / "params.yaml").write_text(
        "seed: 0\ntrain: 1\nmachine: {threads: 1, workers: 1, device: cpu, precision: float32,"
        " checkpoint_seconds: 30, feature_store: .cache/features}\n"
    )
    return tmp_path


def stage(value: int = 1, **machine: Any) -> Stage:
    return Stage("train", 0, replace(MACHINE, **machine), {"seed": 0, "train": value})


def test_an_output_appears_whole_or_not_at_all(work: Path) -> None:
    with pytest.raises(RuntimeError), stage().write("models/net") as folder:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise RuntimeError
    assert list((work / "models").iterdir()) == []
    for content in ("old", "new"):
        with stage().write("models/net") as folder:
            folder.mkdir()
            (folder / content).write_text(content)
    assert [path.name for path in (work / "models").rglob("*")] == ["net", "new"]


def test_history_and_metrics_are_what_dvc_reads(work: Path) -> None:
    stage().write_history("plots/a.csv", [{"step": 0, "loss": 0.5}, {"step": 20, "accuracy": 1.0}])
    assert (work / "plots/a.csv").read_text().split() == ["step,loss,accuracy", "0,0.5,", "20,,1"]
    stage().write_metrics("metrics/a.json", {"painted.main_object": 0.75})
    assert json.loads((work / "metrics/a.json").read_text()) == {"painted.main_object": 0.75}


def test_metrics_are_json(work: Path) -> None:
    """Which has neither NaN nor infinity."""
    figures = {"good": 0.5, "none": float("nan"), "endless": float("inf"), "below": float("-inf"), "verdict": "holds"}
    stage().write_metrics("metrics/a.json", figures)
    assert json.loads((work / "metrics/a.json").read_text()) == {"good": 0.5, "verdict": "holds"}


def test_a_training_goes_on_only_with_the_same_inputs(work: Path) -> None:
    def state_with(name: str) -> dict | None:
        """After one of the files has become another."""
        before = (work / name).read_text()
        (work / name).write_text("other")
        try:
            return stage().checkpoints().load()
        finally:
            (work / name).write_text(before)

    stage().checkpoints().save({"step": 1})
    assert stage().checkpoints().load() == {"step": 1}
    for name in ("data.txt", "configs/a.json", "code.txt"):
        assert state_with(name) is None, name
    assert stage(2).checkpoints().load() is None, "another parameter"


def test_a_training_goes_on_only_by_the_same_arithmetic(work: Path) -> None:
    """Another precision or kind of device gives other results; how many share the work does not."""
    stage().checkpoints().save({"step": 1})
    for changed in ({"precision": "bfloat16"}, {"device": "cuda"}):
        assert stage(**changed).checkpoints().load() is None, changed
    for same in ({"threads": 2}, {"processes": 2}, {"checkpoint_seconds": 1.0}, {"feature_store": "/srv"}):
        assert stage(**same).checkpoints().load() == {"step": 1}, same


def test_success_removes_the_training_state_and_failure_keeps_it(work: Path) -> None:
    def main(stage: Stage, value: int) -> None:
        stage.checkpoints().save({"step": 1})
        if value == 1:
            raise ParameterError("params.yaml: train: try 2")

    with pytest.raises(SystemExit) as caught:
        stages.run("train", int, main)
    assert caught.value.code == 1
    assert len(list((work / ".cache/training/train").iterdir())) == 1
    text = (work / "params.yaml").read_text().replace("train: 1", "train: 2")
    (work / "params.yaml").write_text(text)
    stages.run("train", int, main)
    assert len(list((work / ".cache/training/train").iterdir())) == 1, "only its own state is removed"
    assert json.loads((work / "metrics/stages/train.json").read_text()).keys() == {
        "minutes",
        "peak_memory_gib",
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss of an exec is Linux's")
def test_memory_counts_once(tmp_path: Path) -> None:
    """Neither what the process had that started this one, nor this one's own a second time for a small child of it."""
    script = (
        "import subprocess, sys; from pipelines.runner.stage import cost_so_far\n"
        "if sys.argv[1:]: subprocess.run([sys.executable, '-c', 'a = b\"x\" * (800 << 20)'])\n"
        "else: subprocess.run(['true'])\n"
        "print(cost_so_far()['peak_memory_gib'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    small, large = (
        float(subprocess.run(
            [sys.executable, "-c", f"import subprocess, sys; a = b'x' * (500 << 20); subprocess.run({command!r})"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stdout)
        for command in ([sys.executable, "-c", script], [sys.executable, "-c", script, "child"])
    )  # fmt: skip
    assert small < 0.45, "its parent has more"
    assert 0.8 < large < small + 0.85


def run_stage(train: Callable[[Stage], None]) -> None:
    stages.run("train", int, lambda stage, _: train(stage))


def run_item(train: Callable[[Stage], None]) -> None:
    items.run("token", ("row",), lambda item, _: train(item.stage))


@pytest.mark.parametrize("run", [run_stage, run_item])
def test_a_training_is_kept_until_its_costs_are_written(
    run: Callable[[Callable[[Stage], None]], None], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage, and of an item of a table."""
    (work / "pipelines/tables/table1").mkdir(parents=True)
    (work / "pipelines/tables/table1/dvc.yaml").write_text(
        "stages: {token: {matrix: {row: [ours]}, cmd: 'python -m pipelines.tables.token table1 ${item.row}', deps: [data.txt]}}"
    )
    with (work / "params.yaml").open("a") as params:
        params.write(
            "table1: {seeds: [0], token_steps: null, sequence_steps: null, scst_steps: null, scst_batch_size: null,"
            " sample_temperature: null, pictures: null, guidance: null, examples: 1, java: null}\n"
        )
    monkeypatch.setattr(sys, "argv", ["-", "table1", "ours"])
    trained: list[Stage] = []

    def train(stage: Stage) -> None:
        stage.checkpoints().save({"step": 1})
        trained.append(stage)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Stage, "write_metrics", full)
        run(train)
    assert trained[0].checkpoints().load() == {"step": 1}
    run(train)
    assert trained[1].checkpoints().load() is None, "it is gone when they are written"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("SafetensorError: No space left on device (os error 28)"), "the disk is full"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (
            FileNotFoundError(2, "No such file", "data/shards/index.json"),
            "data/shards/index.json is missing: `dvc repro`",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "data/shards"), "data/shards: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "data/shards"), "data/shards: its file system is read-only"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_user_errors_are_one_line(
    error: BaseException, words: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(stage: Stage, value: int) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        stages.run("train", int, main)
    assert caught.value.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    printed = capsys.readouterr().err.strip()
    assert words in printed and printed.startswith("train: ") and "\n" not in printed


def test_a_defect_keeps_its_traceback(work: Path) -> None:
    def main(stage: Stage, value: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stages.run("train", int, main)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt belongs to glibc")
def test_freed_memory_is_kept() -> None:
    """A second large buffer must not fault its pages in again."""
    script = """
import resource, sys
from pipelines.runner.threads import keep_freed_memory
if sys.argv[1] == "keep": keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(32 << 20); before = faults()
for _ in range(4): bytearray(b"1" * (32 << 20))
print(faults() - before)
"""

    def run(mode: str) -> int:
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(
            [sys.executable, "-c", script, mode], capture_output=True, text=True, check=True,
            env={"PYTHONPATH": ":".join(sys.path + [str(root)])},
        )  # fmt: skip
        return int(done.stdout)

    assert run("keep") < run("default") / 2


def test_an_interrupted_folder_grows_on_with_the_same_inputs_only(work: Path) -> None:
    def interrupted(value: int = 1) -> list[str]:
        """What a run finds, before it adds a file and is stopped."""
        with pytest.raises(KeyboardInterrupt), stage(value).resumable_folder("data/shards") as folder:
            found = sorted(path.name for path in folder.iterdir())
            (folder / f"{len(found)}.tar").write_text("tar")
            raise KeyboardInterrupt
        return found

    assert (interrupted(), interrupted()) == ([], ["0.tar"])
    assert interrupted(2) == [], "another parameter, another folder"
    assert not (work / "data").exists(), "what is not complete has no name"
    (work / "data/shards").mkdir(parents=True)
    (work / "data/shards/old").touch()
    with stage().resumable_folder("data/shards") as folder:
        assert len(list(folder.iterdir())) == 2
    assert sorted(path.name for path in (work / "data/shards").iterdir()) == ["0.tar", "1.tar"]
    assert list((work / ".cache/unfinished").iterdir()) == [], "the other parameter's is gone, too"


def test_a_folder_is_copied_where_the_cache_is_on_another_disk(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def across_disks(source: Path, target: Path) -> None:
        if (".cache" in Path(source).parts) != (".cache" in Path(target).parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across_disks)
    with stage().resumable_folder("data/shards") as folder:
        (folder / "0.tar").write_text("tar")
    assert [path.name for path in (work / "data").rglob("*")] == ["shards", "0.tar"]
    assert list((work / ".cache/unfinished").iterdir()) == []


def test_a_commit_is_marked_where_more_was_changed_than_a_run_writes(work: Path) -> None:
    def git(*command: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *command], check=True, capture_output=True)

    assert stages.commit() == "none"
    git("init", "--quiet")
    written = [work / "metrics/measured.json", work / "dvc.lock", work / "pipelines/table/dvc.lock"]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    git("add", ".")
    git("commit", "--quiet", "-m", "all")
    made_from = stages.commit()
    for path in (*written, work / "new.txt"):
        path.write_text("after")
    assert stages.commit() == made_from
    (work / "code.txt").write_text("b")
    assert stages.commit() == f"{made_from}, with changes"
