"""A DVC remote in object storage (docs/team-cache.md): what one clone pushes another one gets, and no stage runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_storage import ObjectStorage, serve

from pipelines.commands import team_cache
from pipelines.commands.team_cache import TeamCacheError

PARAMS = """machine: {threads: 1, workers: 1, device: cpu, precision: float32, checkpoint_seconds: 30, feature_store: .cache/features}
"""
STAGES = """stages:
  copy: {cmd: "cp numbers copied && mkdir -p folder && cp numbers folder/one && echo 2 > folder/two", deps: [numbers], outs: [copied, folder]}
"""
URL = "s3://bucket/dvc"


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    pytest.importorskip("dvc_s3", reason="no dvc-s3 here: pip install --constraint constraints.txt dvc-s3")
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        # as the docs say for a server of one's own: botocore's names, which DVC's library reads
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield server


def do(folder: Path, *command: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    command = (sys.executable, "-m", *command) if command[0] == "dvc" else command
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small repository with one stage."""
    folder = tmp_path / "clone"
    folder.mkdir()
    do(folder, "git", "init", "--quiet")
    do(folder, "dvc", "init", "--quiet")
    for name, text in (("params.yaml", PARAMS), ("dvc.yaml", STAGES), ("numbers", "1\n"), (".gitignore", "/.cache\n/copied\n/folder\n")):
        (folder / name).write_text(text)
    return folder


def test_through_object_storage_the_second_clone_runs_no_stage(
    storage: ObjectStorage, clone: Path, tmp_path: Path
) -> None:
    lines = list(team_cache.set_up(tmp_path / "shared", remote=URL, clone=clone))
    assert f"{URL}: reached" in lines
    assert "Running stage 'copy'" in do(clone, "dvc", "repro")
    assert "pushed" in do(clone, "dvc", "push", "--run-cache")
    do(clone, "git", "add", "--all")
    do(clone, "git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "run")
    sent = [key for key in storage.keys("PUT") if key.startswith("bucket/dvc/")]
    # both files (two of the three have one content), the folder's list and the record of the run
    assert len(sent) == len(set(sent)) == 4

    other = tmp_path / "other"
    do(tmp_path, "git", "clone", "--quiet", str(clone), str(other))
    do(other, "dvc", "remote", "add", "--local", "--default", "team", URL)
    assert "Running stage" not in do(other, "dvc", "repro", "--pull")
    assert (other / "copied").read_text() == "1\n" == (other / "folder/one").read_text()
    assert (other / "folder/two").read_text() == "2\n"


def test_what_cannot_be_reached_is_one_line(storage: ObjectStorage, clone: Path, tmp_path: Path) -> None:
    with pytest.raises(TeamCacheError, match=r"s3://nobucket/dvc cannot be used yet \(The specified bucket does not exist\)"):
        list(team_cache.set_up(tmp_path / "shared", remote="s3://nobucket/dvc", clone=clone))
    storage.fault = lambda request: "AccessDenied"
    with pytest.raises(TeamCacheError, match=r"cannot be used yet \(Access Denied\): check address, keys and rights"):
        list(team_cache.set_up(tmp_path / "shared", remote=URL, clone=clone))
    storage.fault = None


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_cache.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TeamCacheError, match=r"s3://bucket/dvc: DVC needs .* pip install --constraint constraints\.txt dvc-s3"):
        team_cache.check_remote_url(URL)
