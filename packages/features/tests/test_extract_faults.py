"""Extraction under attack: each test really kills, fills or starves something, and compares with a quiet run.

The runs stand still meanwhile: they wait before they store a part, until the fault is there.

| test | what it kills |
| --- | --- |
| test_a_killed_actor_and_one_out_of_memory | one Ray actor's process, SIGKILL, and another's memory: every further allocation fails |
| test_a_killed_driver_takes_its_actors_along | the driver, SIGKILL |
| test_a_killed_node | a node of a Ray cluster: its raylet, SIGKILL |
| test_a_full_disk | the store's disk |
| test_runs_at_once_share_the_work | nothing: three runs on one store |
| test_a_run_takes_over_from_one_that_dies | one of two runs on a store, SIGKILL |
| test_a_picture_that_kills_workers_is_found | the worker, by one picture in fifty |
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from extraction import CONFIG, assert_same_rows, counts_of, extract, make_dataset, manifest_row, start, stored
from PIL import Image as PilImage
from ray_nodes import cluster_of_nodes, kill_node
from waiting import HANG_SECONDS, kill, wait_until

from diptych.features.detector import Detector, DetectorConfig, save_detector
from diptych.features.errors import UserError
from diptych.features.extraction.claims import Claims
from diptych.features.extraction.encoder import DetectorLoader
from diptych.features.extraction.extract import DEATHS_IN_A_ROW, _Plan
from diptych.features.extraction.workers import EncodingWorker, WorkerConfig
from diptych.features.manifest import read_manifest, write_manifest
from diptych.features.ray_cluster import Death, RayPool
from diptych.features.store import FeatureReader, FeatureStore

COUNT = 60


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), COUNT)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    save_detector(Detector(DetectorConfig(224, (32, 64, 64, 64), 64, 32), ["kite"], ["red"]), folder)
    return folder


@pytest.fixture(scope="module")
def quiet(manifest: Path, detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed run."""
    folder = tmp_path_factory.mktemp("quiet")
    extract(manifest, detector, folder / "store", folder / "out")
    return folder / "store"


def parts(store: Path) -> int:
    return len(list(store.glob("*/part-*.parquet")))


def actors(parent: int) -> list[psutil.Process]:
    """Ray names its actors' processes after their class and method."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::RayActor"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def test_a_killed_actor_and_one_out_of_memory(manifest: Path, detector: Path, quiet: Path, tmp_path: Path) -> None:
    process = start(manifest, detector, tmp_path / "store", tmp_path / "out", workers=2, hold=1)
    killed, starved = actors(process.pid)
    killed.kill()
    used = starved.memory_info().vms
    resource.prlimit(starved.pid, resource.RLIMIT_AS, (used, used))
    assert counts_of(process) == {"images": COUNT, "extracted": COUNT, "reused": 0, "failed": 0}
    assert not starved.is_running()  # it had to be replaced
    assert_same_rows(tmp_path / "store", quiet)


def test_a_killed_driver_takes_its_actors_along(
    manifest: Path, detector: Path, quiet: Path, tmp_path: Path
) -> None:
    process = start(manifest, detector, tmp_path / "store", tmp_path / "out", workers=1, hold=2)
    orphans = actors(process.pid)
    kill(process)
    kept = len(stored_so_far(tmp_path / "store"))
    gone, alive = psutil.wait_procs(orphans, timeout=HANG_SECONDS)
    assert gone and not alive
    counts = extract(manifest, detector, tmp_path / "store", tmp_path / "out")
    assert counts["reused"] == kept > 0 and counts["extracted"] == COUNT - kept
    assert_same_rows(tmp_path / "store", quiet)


def stored_so_far(store: Path) -> list[str]:
    return [
        key for part in store.glob("*/part-*.parquet") for key in pq.read_table(part)["sha256"].to_pylist()
    ]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a head without CPUs and two nodes with one each."""
    with cluster_of_nodes(2) as cluster:
        yield cluster


def test_a_killed_node(cluster, manifest: Path, detector: Path, quiet: Path, tmp_path: Path) -> None:
    process = start(
        manifest, detector, tmp_path / "store", tmp_path / "out", workers=2, hold=1, ray_address=cluster.address
    )
    kill_node(cluster.nodes[0])
    assert counts_of(process)["extracted"] == COUNT
    assert_same_rows(tmp_path / "store", quiet)


def test_a_full_disk(manifest: Path, detector: Path, quiet: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here: a small disk cannot be made")
    disk = tmp_path / "disk"
    disk.mkdir()
    # A disk of its own for this shell only. One part has about 10 rows of 4 KiB; the whole store 250 KiB.
    shell = f"""
        mount -t tmpfs -o size=160k none {disk} || exit 77
        "$@"; echo "status $?" >&2
        ls -A {disk}/store/* > {tmp_path}/listing
        mount -o remount,size=10m {disk} || exit 77
        "$@" || exit 1
        cp -r {disk}/store {tmp_path}/store
    """
    process = start(
        manifest,
        detector,
        disk / "store",
        tmp_path / "out",
        prefix=("unshare", "-Urm", "sh", "-c", shell, "sh"),
    )
    out, err = process.communicate(timeout=HANG_SECONDS)
    if process.returncode == 77:
        pytest.skip("no small disk can be mounted here")
    assert process.returncode == 0, err
    assert "status 1" in err and "No space left on device" in err
    listing = (tmp_path / "listing").read_text().split()
    kept = [name for name in listing if name.startswith("part-")]
    assert kept and not [name for name in listing if name.startswith(".")]
    assert '"extracted": 0' not in out and f'"reused": {0}' not in out
    assert_same_rows(tmp_path / "store", quiet)


def test_runs_at_once_share_the_work(manifest: Path, detector: Path, quiet: Path, tmp_path: Path) -> None:
    """Two runs of one dataset and one of another that overlaps it, under other names, on one store."""
    other = make_dataset(tmp_path / "other", COUNT // 2, name="renamed")
    # the first one has work of its own and stands still until another one has stored a part too
    runs = [
        start(manifest, detector, tmp_path / "store", tmp_path / "one", hold=0),
        start(manifest, detector, tmp_path / "store", tmp_path / "two"),
        start(other, detector, tmp_path / "store", tmp_path / "three"),
    ]
    wait_until(lambda: parts(tmp_path / "store") >= 1, runs[0])
    counts = [counts_of(run) for run in runs]
    assert sum(c["extracted"] for c in counts) == COUNT
    assert sum(c["extracted"] > 0 for c in counts) >= 2  # they did work at once
    assert [c["images"] for c in counts] == [c["extracted"] + c["reused"] for c in counts]
    assert_same_rows(tmp_path / "store", quiet)
    assert [len(FeatureReader(tmp_path / name)) for name in ("one", "two", "three")] == [60, 60, 30]


def test_a_run_takes_over_from_one_that_dies(
    manifest: Path, detector: Path, quiet: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    dying = start(manifest, detector, store, tmp_path / "one", hold=0)  # alive, and it holds a claim
    (claim,) = store.glob("*/runs/*.claim")
    held = set(claim.read_text().split()) - set(stored_so_far(store))
    surviving = start(manifest, detector, store, tmp_path / "two")
    wait_until(lambda: len(stored_so_far(store)) == COUNT - len(held), surviving)
    time.sleep(1)  # no time is too short for what follows; the longer, the more it shows
    assert surviving.poll() is None and held  # it waits for what the other one claimed
    kill(dying)
    assert counts_of(surviving)["images"] == COUNT
    assert_same_rows(store, quiet)


# Pictures that kill, with the real plan and worker but without processes


@pytest.fixture
def plan(tmp_path: Path, manifest: Path, detector: Path) -> Iterator[_Plan]:
    store = FeatureStore(tmp_path / "store", {"feature_dim": 32})
    rows = read_manifest(manifest).slice(0, 50).to_pylist()
    with Claims(store.folder / "runs") as claims:
        yield _Plan(rows, manifest, store, claims, CONFIG, set(), DetectorLoader(str(detector), "torchvision")("cpu"))


def test_a_picture_that_kills_workers_is_found(plan: _Plan, detector: Path) -> None:
    load = DetectorLoader(str(detector), "torchvision")
    worker = EncodingWorker(WorkerConfig(load, "cpu", 1, "float32", "extract"))
    deaths = 0
    while not plan.finished:
        task = plan.next_task()
        assert task is not None
        if any(image.image_id == "image-031" for image in task.images):
            deaths += 1
            plan.settle(task, Death("SIGSEGV"))
        else:
            plan.settle(task, worker.forward(worker.decode(task)))
    (failure,) = plan.failed.values()
    assert failure["kind"] == "kills_workers" and "image-31.png" in failure["message"]
    assert plan.extracted == 49 and len(plan.store.known()) == 49 and deaths <= 6


def test_a_task_that_may_kill_has_an_actor_for_itself() -> None:
    """Or what dies beside it would be blamed as well."""

    class Actor:
        def __init__(self) -> None:
            self.work = SimpleNamespace(remote=lambda task: task)

    first, second = Actor(), Actor()
    pool = RayPool.__new__(RayPool)  # without Ray: what it hands to whom
    pool.at_once, pool.alone, pool.running, pool.lonely = 2, lambda task: task.startswith("suspect"), {}, deque()
    pool.loads = {first: 1, second: 0}
    pool.submit("suspect 1")
    assert pool.running == {"suspect 1": ("suspect 1", second)} and pool.has_room, "the first has a place left"
    pool.submit("suspect 2")
    assert not pool.has_room and list(pool.lonely) == ["suspect 2"], "nobody gets more until it has begun"
    pool.loads[first] = 0  # its task has ended
    pool._begin_lonely()
    assert pool.running["suspect 2"] == ("suspect 2", first) and pool.loads == {first: 2, second: 2}


def test_workers_that_always_die_end_the_run(plan: _Plan) -> None:
    with pytest.raises(UserError, match="13 tasks in a row died with their workers .*lower machine.workers"):
        for _ in range(DEATHS_IN_A_ROW + 1):
            task = plan.next_task()
            assert task is not None
            plan.settle(task, Death("out of memory"))
    assert plan.store.failures() == {}


def test_failures_are_remembered_and_retried_when_asked(detector: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        PilImage.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
        if number == 3:
            (tmp_path / "3.png").write_bytes(b"")
        rows.append(manifest_row(tmp_path / f"{number}.png", f"i{number}"))
    write_manifest(rows, tmp_path / "manifest.parquet")
    arguments = (tmp_path / "manifest.parquet", detector, tmp_path / "store", tmp_path / "out")
    shutil.copy(tmp_path / "0.png", tmp_path / "spare.png")
    (tmp_path / "0.png").unlink()
    first = extract(*arguments, max_failed_share=0.5)
    assert first == {
        "images": 8, "extracted": 6, "reused": 0, "failed": 2, "failed.missing": 1, "failed.empty": 1
    }  # fmt: skip
    (folder,) = (tmp_path / "store").iterdir()
    shutil.copy(tmp_path / "spare.png", tmp_path / "0.png")  # a missing file may come back: it is tried again
    tables = len(list(folder.glob("failures-*")))
    again = extract(*arguments, max_failed_share=0.5)
    assert (again["extracted"], again["failed"], again["failed.empty"]) == (1, 1, 1)
    assert len(list(folder.glob("failures-*"))) == tables == 1  # the empty one was not
    extract(*arguments, max_failed_share=0.5, retry_failed=True)
    assert len(list(folder.glob("failures-*"))) == 2


def test_a_file_that_changed_is_not_stored_under_the_old_key(detector: Path, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path, 20)
    PilImage.new("RGB", (9, 9)).save(tmp_path / "images/image-7.png")
    counts = extract(manifest, detector, tmp_path / "store", tmp_path / "out")
    assert counts["failed.changed"] == 1 and counts["extracted"] == 19
    assert len(stored(tmp_path / "store")) == 19
