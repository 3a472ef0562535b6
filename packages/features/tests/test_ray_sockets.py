"""A temporary folder whose name leaves no room for Ray's sockets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from extraction import counts_of, make_dataset, start

from diptych.features.detector import Detector, DetectorConfig, save_detector
from diptych.features.errors import UserError
from diptych.features.ray_cluster import Cluster, RayPool
from diptych.features.ray_sockets import LONGEST, _digits, check_room_for_sockets

# below the temporary folder, by Ray 2
BELOW = len("/ray/session_2026-01-01_00-00-00_000000_/sockets/plasma_store") + _digits()


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def folder_of(root: Path, length: int) -> Path:
    """A folder below `root` whose path has `length` bytes."""
    folder = root / ("x" * (length - len(str(root)) - 1))
    folder.mkdir()
    return folder


def test_the_longest_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "x" * (LONGEST - BELOW))
    check_room_for_sockets()
    monkeypatch.setenv("TMPDIR", "x" * (LONGEST - BELOW + 1))
    with pytest.raises(
        UserError, match=f"TMPDIR=x+: .* {LONGEST + 1} bytes .* allows {LONGEST}: .*RAY_TMPDIR=/tmp"
    ):
        check_room_for_sockets()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_room_for_sockets()
    monkeypatch.setenv("RAY_TMPDIR", "ü" * 30)  # bytes count, not letters
    with pytest.raises(UserError, match="RAY_TMPDIR=ü+"):
        check_room_for_sockets()
    monkeypatch.delenv("TMPDIR")
    monkeypatch.delenv("RAY_TMPDIR")
    check_room_for_sockets()


@pytest.mark.slow
def test_ray_really_starts_in_the_longest_and_is_not_asked_to_in_a_longer_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path, 3)
    torch.manual_seed(0)
    save_detector(Detector(DetectorConfig(64, (8, 8, 8, 8), 8, 8), ["kite"], ["red"]), tmp_path / "detector")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for length, fits in ((LONGEST - BELOW, True), (LONGEST, False)):
        monkeypatch.setenv("TMPDIR", str(folder_of(root, length)))
        run = start(
            manifest, tmp_path / "detector", tmp_path / f"store{length}", tmp_path / f"out{length}", 1
        )
        if fits:
            assert counts_of(run)["extracted"] == 3
        else:
            said = run.communicate()[1].splitlines()  # a progress bar, and one line
            assert run.returncode == 1 and said[-1].startswith("UserError: TMPDIR=")
            assert not any("Error" in line for line in said[:-1])


@pytest.mark.parametrize("error", [Exception, OSError, ConnectionError, RuntimeError])
def test_a_ray_that_does_not_start_is_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine Ray gives up after half a minute, by a plain Exception."""
    import ray

    def refuse(**_: object) -> None:
        raise error("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", refuse)
    cluster = Cluster(None, "machine.ray_address", "set machine.workers to 0")
    said = r"^machine: Ray does not start \(on this machine\): .* timed out during startup\. .* machine\.workers to 0"
    with pytest.raises(UserError, match=said):
        RayPool(list, 1, False, cluster)
