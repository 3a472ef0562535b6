"""Clones of this repository for the tests of the pipeline."""

from __future__ import annotations

import fcntl
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_clone import Clone, make_clone

from pipelines.tables import compared

# Files that take longest, in the order in which processes take them: those that need `finished_clone` behind one that makes
# it, while another process has work that needs none. All others follow.
FIRST = (
    "test_pipeline.py",
    "test_extract_faults.py",
    "test_export.py",
    "test_training.py",
    "test_training_loop.py",
    "test_l_verse.py",
    "test_ray_cluster.py",
    "test_table2.py",
    "test_x_lxmert.py",
    "test_team_cache.py",
    "test_tables.py",
    "test_table_x_lxmert.py",
    "test_processes.py",
    "test_resume.py",
    "test_tables_driver.py",
    "test_shards_elsewhere.py",
    "test_training_processes.py",
    "test_pretraining.py",
    "test_clip.py",
    "test_captions_official.py",
    "test_coco_mini.py",
    "test_doctor.py",
    "test_codebook.py",
    "test_data_path.py",
    "test_detector.py",
    "test_odd_pictures.py",
    "test_serve_browser.py",
    "test_diptych.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process has a long one left while the others have ended."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


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


@dataclass(frozen=True)
class Ended:
    """How a command ended that ran in the tests' own process."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs what a command calls in a folder, with arguments: in this process, which has imported everything, where the
    message and the status matter. An error that is no message is raised, as a process would show a traceback."""

    def run(folder: Path, main: Callable[[], None], *arguments: str) -> Ended:
        numbers = (signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.getsignal(number) for number in numbers]
        environment, threads = dict(os.environ), torch.get_num_threads()
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["-", *arguments])
            try:
                main()
                code: str | int | None = 0
            except SystemExit as ended:
                code = ended.code
            finally:
                for number, handler in zip(numbers, handlers, strict=True):
                    signal.signal(number, handler)
                os.environ.clear()
                os.environ.update(environment)
                torch.set_num_threads(threads)
        printed, said = capsys.readouterr()
        # what is no number, Python prints on stderr, and ends with status 1
        return Ended(1, printed, f"{said}{code}\n") if isinstance(code, str) else Ended(code or 0, printed, said)

    return run


@pytest.fixture
def module_here(run_here: Callable[..., Ended]) -> Callable[..., Ended]:
    """`python -m MODULE` in a folder, in this process, which has imported everything: seconds less than a process of its own. The code
    is this repository's, whatever a clone has changed."""

    def run(folder: Path, module: str, *arguments: str) -> Ended:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
            return run_here(folder, partial(runpy.run_module, module, run_name="__main__", alter_sys=True), *arguments)

    return run


class Here(Executor):
    """What is submitted runs in this process, at once."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        done = Future[Any]()
        done.set_result(fn(*arguments, **options))
        return done


@pytest.fixture
def costs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What captions and paintings of a table's systems cost is measured in the tests' own process: the figures mean nothing."""
    monkeypatch.setattr(compared, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(compared, "resident", lambda: 0)
