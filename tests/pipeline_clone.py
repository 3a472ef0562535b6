"""A throw-away clone of this repository with a profile's parameters, and what `dvc repro` ran in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from waiting import wait_until

from pipelines.runner.profile import write_profile

REPOSITORY = Path(__file__).resolve().parents[1]


HELD_TRAINING = """

def _hold():
    import time
    from diptych.model.checkpoints import TrainingCheckpoints

    save = TrainingCheckpoints.save

    def save_and_wait(self, state):
        save(self, state)
        if int(self._paths()[0].stem.split("-")[1]) >= SAVES:
            (self.folder / "held").touch()
            time.sleep(3600)

    TrainingCheckpoints.save = save_and_wait


_hold()
"""


@dataclass(frozen=True)
class Clone:
    """A git clone whose stages run in this Python and read the packages of the clone."""

    folder: Path

    def command(self, *arguments: str) -> dict:
        """Keyword arguments for subprocess that start `arguments` in the clone."""
        sources = [str(self.folder / "packages" / name / "src") for name in ("features", "eval", "model")]
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sources),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        return {"args": arguments, "cwd": self.folder, "env": environment}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit status."""
        return subprocess.run(**self.command(*arguments), capture_output=True, text=True, check=False)

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro`, which must succeed; the names of the stages that ran, in order."""
        done = self.run("dvc", "repro", *arguments)
        assert done.returncode == 0, f"dvc repro failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return re.findall(r"^Running stage '(\w+)'", done.stdout, re.MULTILINE)

    def stale(self, pipeline: str = "dvc.yaml") -> set[str]:
        """Stages that `dvc repro` would run first: those of which something has changed. What only they reach is not among them."""
        done = self.run("dvc", "status", "--json", pipeline)
        assert done.returncode == 0, done.stderr[-6000:]
        return {name.rpartition(":")[2] for name in json.loads(done.stdout)}

    def repro_of(self, pipeline: str, *stages: str) -> list[str]:
        """`dvc repro` of a further pipeline's file, or of stages in it, which must succeed; its stages that ran, in order. Not `code`: the
        lock file that DVC writes lies among the code, whose digests stay the same."""
        done = self.run("dvc", "repro", *([f"{pipeline}:{stage}" for stage in stages] or [pipeline]))
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        ran = re.findall(rf"^Running stage '(?:{pipeline}:)?([\w@-]+)'", done.stdout, re.MULTILINE)
        return [name for name in ran if name != "code"]

    def set_params(self, *overrides: str, profile: str = "smoke") -> None:
        """Write params.yaml: `profile` with Hydra overrides."""
        write_profile(profile, self.folder / "params.yaml", overrides, self.folder / "pipelines/conf")

    @contextmanager
    def held_trainings(self, saves: int) -> Iterator[None]:
        """Within the block, trainings stop after so many checkpoints and wait to be killed; a file `held` beside these says
        that one does. (The runner, which does it, is no part of the code that a result follows from.)"""
        file = self.folder / "pipelines/runner/stage.py"
        before = file.read_text(encoding="utf-8")
        file.write_text(before + HELD_TRAINING.replace("SAVES", str(saves)), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(before, encoding="utf-8")

    def start_held(
        self, saves: int, store: Path, *command: str, said: IO[str] | int = subprocess.DEVNULL
    ) -> subprocess.Popen:
        """Start a training that says all to `said`, and wait until it has saved so many checkpoints in `store` and waits."""
        with self.held_trainings(saves):
            process = subprocess.Popen(**self.command(*command), stdout=said, stderr=said)
            wait_until(lambda: list(store.rglob("held")), process)
        return process

    def kill_held(self, store: Path, *command: str) -> None:
        """Start a training, and kill it when it has saved four checkpoints in `store`."""
        process = self.start_held(4, store, *command)
        process.kill()
        process.wait()

    def copy(self, folder: Path) -> Clone:
        """An independent copy with all outputs."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)


def make_clone(folder: Path) -> Clone:
    """The repository's files as git would take them, in a fresh git repository without any output."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file() and Path(name).name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    shutil.rmtree(folder / "metrics", ignore_errors=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "-m", "test"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return Clone(folder)
