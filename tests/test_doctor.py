"""Each check of the doctor against the bad situation it looks for, provoked; and the command as a whole."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pipeline_clone import REPOSITORY, Clone, make_clone
from waiting import HANG_SECONDS, PATIENT_RAY, RAY_ENVIRONMENT, wait_until

from pipelines.commands import team_cache
from pipelines.commands.doctor import __main__ as doctor
from pipelines.commands.doctor.clone import check_git, check_leftovers, check_locks, check_params
from pipelines.commands.doctor.finding import Finding, guarded, ok
from pipelines.commands.doctor.installation import (
    _required,
    check_packages,
    check_python,
    check_ray,
    check_torch,
)
from pipelines.commands.doctor.machine import (
    check_encoding,
    check_gpu,
    check_java,
    check_memory,
    check_processor,
)
from pipelines.commands.doctor.storage import (
    check_links,
    check_remote,
    check_shared_folder,
    check_space,
    image_count,
    space_needed,
)

# of what a stage's result follows from
KEY = "0123456789abcdef" * 2


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach (pytest's own folders are closed to others)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_ordinary_user(check: Callable[[], Finding]) -> Finding:
    """Run a check without root's rights, to which nothing is closed: in a child process where this one is root's."""
    if os.geteuid() != 0:
        return check()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        result: object = None
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            result = check()
        except BaseException as error:  # noqa: BLE001  (the child must not go on as a second pytest)
            result = repr(error)
        os.write(write, pickle.dumps(result))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    assert isinstance(result, Finding), result
    return result


def expect(finding: Finding, level: str, *words: str) -> None:
    assert finding.level == level, finding
    assert [word for word in words if word not in finding.text] == [], finding
    assert "\n" not in finding.text


# --- the machine ----------------------------------------------------------------------------------------------------


def test_python() -> None:
    expect(check_python(), "ok")
    expect(check_python((3, 9, 2)), "problem", "3.9.2", "3.11", "make run PYTHON=")
    expect(
        check_python(on_path="/usr/bin/python"),
        "note",
        "/usr/bin/python",
        f"PATH={Path(sys.executable).parent}",
    )


def test_packages(tmp_path: Path) -> None:
    (tmp_path / "packages/a").mkdir(parents=True)
    (tmp_path / "packages/a/pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2", "ruamel_yaml; python_version > \'3\'", "diptych-features"]\n'
        '[project.optional-dependencies]\nserve = ["uvicorn"]\ngpu = ["cupy"]\n'
    )
    (tmp_path / "constraints.txt").write_text(
        "# pins\ntorch==2.12.1\nruamel.yaml==0.19.1\ndvc==3.67.1\npytest==9.2.0\n"
    )
    (tmp_path / "Makefile").write_text("PACKAGES := -e 'packages/a[use,serve]'\nPIPELINE := dvc\n")
    versions = {"torch": "2.12.1+cu130", "ruamel.yaml": "0.19.1", "ruamel_yaml": "0.19.1", "dvc": "3.67.1"}
    versions["uvicorn"] = "0.30"

    def version_of(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    expect(check_packages(tmp_path, version_of), "ok")  # pytest is no part of a run
    versions["torch"] = "2.13.0"
    expect(check_packages(tmp_path, version_of), "note", "torch 2.13.0 instead of 2.12.1", "make run")
    del versions["dvc"], versions["uvicorn"]
    expect(check_packages(tmp_path, version_of), "problem", "missing: dvc, uvicorn", "make run")


def test_packages_of_this_repository_are_found() -> None:
    required = _required(REPOSITORY)
    assert {"torch", "ray", "faiss-cpu", "uvicorn", "dvc", "psutil", "pyarrow"} <= required
    assert not any(name.startswith("diptych") or not name for name in required)


def test_torch_and_torchvision_that_do_not_match(tmp_path: Path) -> None:
    """torchvision's operators are missing in a build for another torch; it says so when it is imported."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *a: None)\n__version__ = '0'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.commands.doctor.installation import check_torch as c; f = c(); print(f.level, f.text)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path, str(REPOSITORY)])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("problem") and "operator torchvision::nms does not exist" in done.stdout
    assert "pip install" in done.stdout
    expect(check_torch(), "ok")


def test_processor() -> None:
    expect(check_processor("auto", 8, None), "ok", "8 cores, 8 threads")
    expect(check_processor("auto", 8, 1.5), "ok", "1.5 cores' time", "1 threads")
    expect(check_processor("auto", 2, 0.5), "ok", "0.5 cores' time", "1 threads")
    expect(check_processor(2, 2, 0.5), "note", "machine.threads is 2", "auto", "here 1")
    expect(check_processor(16, 8, None), "note", "machine.threads is 16", "auto", "here 8")


def test_memory() -> None:
    expect(check_memory("toybox", 16, 12), "ok", "12.0 of 16.0 GiB free")
    expect(check_memory("toybox", 16, 1), "note", "needs 3.1", "close other programs")
    expect(check_memory("toybox", 2.5, 2), "problem", "needs 3.1", "smoke")
    expect(check_memory("mine", 1, 1), "ok")


def test_gpu() -> None:
    expect(check_gpu("auto", [], None, None), "ok", "none")
    expect(check_gpu("auto", ["H200"] * 2, "13.0", "580.1"), "ok", "2 x H200", "580.1", "13.0")
    expect(check_gpu("cuda:1", [], "13.0", None), "problem", "machine.device is cuda:1", "auto")
    expect(check_gpu("auto", [], None, "580.1"), "note", "build without CUDA")
    expect(check_gpu("auto", [], "13.0", "470.2"), "note", "470.2", "CUDA_VISIBLE_DEVICES", "older")
    expect(check_gpu("cuda", [], "13.0", "470.2"), "problem", "470.2")


def test_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(check_ray(workers=0), "ok", "not used")
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    program = "import time; time.sleep(3600)"
    expect(check_ray(program=program, seconds=0.5), "problem", "within 0.5 s", "machine.workers to 0")
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    program = "raise SystemExit('first line\\nConnectionError: no route to host')"
    expect(check_ray(address="head:6379", program=program), "problem", "head:6379", "no route to host")


def test_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    expect(check_java(), "note", "not found", "apt-get install default-jre-headless")
    expect(check_java(wanted=True), "problem", "not found", "evaluate.java to false")
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho 'libjvm.so: cannot open shared object file' >&2; exit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    expect(check_java(), "note", str(broken), "libjvm.so", "apt-get install")
    (tmp_path / "home/bin").mkdir(parents=True)
    java = tmp_path / "home/bin/java"
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    expect(check_java(wanted=True), "ok", str(java))


def test_encoding() -> None:
    assert check_encoding("utf-8") == check_encoding("UTF8") == ok("UTF-8")
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.commands.doctor.machine import check_encoding; print(check_encoding())"],
        env={"PYTHONPATH": str(REPOSITORY), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "level='note'" in done.stdout and "ANSI_X3.4-1968" in done.stdout and "C.UTF-8" in done.stdout


# --- the clone ------------------------------------------------------------------------------------------------------


def test_git(tmp_path: Path, clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(check_git(clone.folder), "ok")
    expect(check_git(tmp_path), "problem", "not a git repository", "git clone")
    (clone.folder / ".dvc/config").unlink()
    expect(check_git(clone.folder), "problem", ".dvc/config is missing", "git checkout .dvc")
    monkeypatch.setenv("PATH", str(tmp_path))
    expect(check_git(clone.folder), "problem", "apt-get install git")


def test_parameters(clone: Clone) -> None:
    expect(check_params(clone.folder), "ok", "smoke")
    params = clone.folder / "params.yaml"
    right = params.read_text()
    params.write_text(right.replace("  part_size:", "  part_sice:"))
    expect(check_params(clone.folder), "problem", "params.yaml", "part_sice")
    params.write_text(right.replace("source: code/sources/toybox.json", "source: nowhere/"))
    expect(check_params(clone.folder), "problem", "nowhere/", "dataset.source")
    params.write_text(right.replace("  compositional: 8", "  compositional: 0"))
    expect(check_params(clone.folder), "problem", "generate.sets.compositional", "no split compositional")
    params.write_text(right.replace("initial: null", "initial: models/nowhere"))
    expect(check_params(clone.folder), "problem", "models/nowhere", "train_token.initial")
    params.write_text("a: [")
    expect(check_params(clone.folder), "problem", "params.yaml", "not valid YAML")


def test_links(tmp_path: Path) -> None:
    clone, cache = tmp_path / "clone", tmp_path / "cache"
    clone.mkdir()
    works = team_cache.working_links(cache, clone)
    assert "symlink" in works and "hardlink" in works, "on the file system of the tests"
    assert list(clone.iterdir()) == list(cache.iterdir()) == [], "what was tried is gone"
    expect(check_links(clone, cache, team_cache.best_cache_types(works)), "ok")
    if "reflink" not in works:
        expect(
            check_links(clone, cache, ["reflink", "hardlink", "copy"]),
            "note", "on disk twice", "dvc config --local cache.type hardlink,symlink && dvc checkout --relink",
        )  # fmt: skip
        expect(
            check_links(clone, cache, ["reflink"]),
            "problem",
            "cache.type is reflink",
            "hardlink,symlink",
        )


def test_links_to_another_file_system(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no second file system here")
    cache = Path(tempfile.mkdtemp(dir=memory))
    try:
        assert team_cache.working_links(cache, tmp_path) == ["symlink"]
        expect(check_links(tmp_path, cache, ["hardlink"]), "problem", "cache.type symlink")
        expect(check_links(tmp_path, cache, ["symlink"]), "ok")
    finally:
        cache.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_links_to_another_users_file(open_folder: Path) -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("this system allows hard links to everybody's files")
    clone, cache = open_folder / "clone", open_folder / "cache"
    clone.mkdir()
    os.chown(clone, 65534, 65534)
    (cache / "files/md5/ab").mkdir(parents=True)
    (cache / "files/md5/ab/cd").touch(0o444)
    cache.chmod(0o777)
    works = team_cache.working_links(cache, clone)
    if "reflink" in works:
        pytest.skip("reflinks are allowed for other users' files")
    expect(as_ordinary_user(lambda: check_links(clone, cache, ["hardlink", "symlink"])), "ok", "root")
    expect(
        as_ordinary_user(lambda: check_links(clone, cache, ["hardlink", "copy"])),
        "note", "files of root are refused", "hardlink,symlink",
    )  # fmt: skip
    assert list(clone.iterdir()) == []


def test_a_folder_that_is_not_writable(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    expect(
        as_ordinary_user(lambda: check_shared_folder(closed, False)), "problem", "not writable for you"
    )
    expect(
        as_ordinary_user(lambda: check_shared_folder(closed / "later", False)),
        "problem", "not writable for you", str(closed),
    )  # fmt: skip
    wide = open_folder / "wide"
    (wide / "key").mkdir(parents=True)
    wide.chmod(0o2777)
    (wide / "key").chmod(0o755 if os.geteuid() == 0 else 0o555)
    expect(
        as_ordinary_user(lambda: check_shared_folder(wide, True)),
        "problem", "1 folders", "closed to you", "such as key", "make team-cache",
    )  # fmt: skip


def test_a_shared_folder_that_others_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    expect(check_shared_folder(store, False), "ok", "of this clone only")
    link = tmp_path / "link"
    link.symlink_to(store)
    expect(check_shared_folder(link, True), "problem", f"{store} does not exist", "mounted")
    store.mkdir(mode=0o755)
    expect(check_shared_folder(link, True), "note", "not open to its group", "make team-cache")
    store.chmod(0o2775)  # as an administrator makes it: right, but a umask of 077 closes what is made inside
    before = os.umask(0o077)
    try:
        expect(check_shared_folder(link, True), "note", "closed to others", "umask 002")
        os.umask(0o002)
        expect(check_shared_folder(link, True), "ok", str(store))
    finally:
        os.umask(before)
    assert list(store.iterdir()) == []


def test_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(check_remote(None, None), "ok", "none")
    expect(check_remote("disk", "/srv/remote"), "ok")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expect(check_remote("team", "ssh://server/srv"), "note", "ssh://server/srv", "dvc-ssh")


def test_space(tmp_path: Path) -> None:
    places = {"a": (tmp_path / "not/yet", 2e9, 3e9), "b": (tmp_path, 1e9, 2e9)}
    expect(check_space(places, free=lambda _: 6 * 10**9), "ok", "up to 5.0 GB to be written, 6.0 GB free")
    expect(check_space(places, free=lambda _: 4 * 10**9), "note", "5.0 GB", "4.0 GB free", "make room, unless")
    expect(
        check_space(places, free=lambda _: 2 * 10**9), "problem", "5.0 GB", "2.0 GB free", "make room"
    )
    expect(check_space({"a": (tmp_path, 10**15, 10**15)}), "problem", "1000000.0 GB to be written")


def test_space_of_coco_is_the_papers_arithmetic(tmp_path: Path) -> None:
    """64 cells x 2048 x 2 bytes = 256 KiB an image; 123,287 images are 32.3 GB (docs/team-cache.md)."""
    params = {"dataset": {"toybox": None}, "detector": {"network": {"feature_dim": 2048}}}
    cache, store = tmp_path / "cache", tmp_path / "store"
    (store / "key").mkdir(parents=True)
    (store / "key/part").write_bytes(bytes(10**6))
    places = space_needed(params, tmp_path, cache, store, linked=True)
    features = 123_287 * 256 * 1024
    assert places["feature store"] == (store, features - 10**6, features), "what is there may be another detector's"
    # pictures in the shards; networks, and the test sets' pictures
    rest = pytest.approx(123_287 * 154_000 + 16 * 2**30)
    assert places["DVC's cache"][2] - features == rest, "the shards; features are linked from the store"
    assert places["this clone"] == (tmp_path, 0, 0)
    copied = space_needed(params, tmp_path, cache, store, linked=False)
    assert copied["DVC's cache"][2] - 2 * features == rest
    assert copied["this clone"][2] - features == rest, "the shards; features are linked from the store"
    drawn = {"dataset": {"toybox": {"train": 10}}, "detector": {"network": {"feature_dim": 128}}}
    small = space_needed(drawn, tmp_path, cache, store, linked=True)["DVC's cache"][2]
    assert small == pytest.approx(10 * 64 * 128 * 2 + 0.1 * 2**30), "Toybox's pictures are a few kilobytes"
    toybox = {"dataset": {"toybox": {"train": 10, "val": 2, "test": 2, "compositional": 1, "ablation": 1}}}
    assert image_count(toybox, tmp_path) == 16


def test_leftovers(tmp_path: Path) -> None:
    expect(check_leftovers(tmp_path), "ok", "none")
    (tmp_path / "models/.partial-detector").mkdir(parents=True)
    (tmp_path / "models/.partial-detector/model").write_bytes(bytes(2_000_000))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.partial-evaluation.parquet").touch()
    expect(
        check_leftovers(tmp_path), "note",
        "2.0 MB", "rm -r data/.partial-evaluation.parquet models/.partial-detector",
    )  # fmt: skip
    (tmp_path / ".partial-report").mkdir()
    (tmp_path / "ablations/table2/models/.partial-ours-0").mkdir(parents=True)
    expect(check_leftovers(tmp_path), "note", "rm -r .partial-report ", " ablations/table2/models/.partial-ours-0")
    state = tmp_path / ".cache/training/train_token" / KEY
    state.mkdir(parents=True)
    assert "train_token" not in check_leftovers(tmp_path).text, "an empty folder is no training"
    (state / "state.pt").touch()
    unfinished = tmp_path / ".cache/unfinished/shard" / KEY
    unfinished.mkdir(parents=True)
    (unfinished / "part").touch()
    expect(
        check_leftovers(tmp_path),
        "note",
        "shard, train_token with `dvc repro`",
        "where parameters, inputs and code are those again",
        "rm -r .cache/training",
        ".partial-",
    )


def test_a_stopped_run_goes_on_with_its_own_command(tmp_path: Path) -> None:
    cache = tmp_path / ".cache"
    for finished in ("ablations/token@ours-0", "ablations/table2/biart@0", f"train_token/{KEY}/joint", "x_lxmert/pretrain"):
        (cache / "training" / finished).mkdir(parents=True)
    expect(check_leftovers(tmp_path), "ok", "none")  # what forgets a state leaves the folders above it
    for left in (
        f"training/train_token/{KEY}/joint/checkpoint-00000001.pt",
        f"training/x_lxmert/fine_tune@vqa-pretrained/{KEY}/checkpoint-00000001.pt",
        f"training/l_verse/biart/{KEY}/checkpoint-00000001.pt",
        f"training/compare_training_stages/{KEY}/1/checkpoint-00000001.pt",
        f"training/ablations/token@ours-0/{KEY}/checkpoint-00000001.pt",
        f"training/ablations/table2/biart@1/{KEY}/checkpoint-00000001.pt",
        f"training/ablations/table_x_lxmert/pretrained@ours-0/{KEY}/checkpoint-00000001.pt",
        "unfinished/ablations/table2/embeddings/01/23",
        "unfinished/l_verse/evaluate/embeddings/01/23",
    ):
        (cache / left).parent.mkdir(parents=True, exist_ok=True)
        (cache / left).write_bytes(bytes(500_000))
    expect(
        check_leftovers(tmp_path), "note", "4.5 MB",
        "ablations/table2, ablations/table2/biart@1 with `make table2`; "
        "ablations/table_x_lxmert/pretrained@ours-0 with `make table-x-lxmert`; "
        "ablations/token@ours-0 with `make table1`; "
        "compare_training_stages with `python -m pipelines.commands.compare_training_stages`; "
        "l_verse/biart, l_verse/evaluate with `make l-verse`; "
        "train_token with `dvc repro`; "
        "x_lxmert/fine_tune@vqa-pretrained with `make x-lxmert`; to forget",
    )  # fmt: skip


@pytest.fixture
def sleeper(tmp_path: Path) -> Clone:
    """A DVC repository whose one stage says `asleep` and sleeps, unless the file `awake` is there."""
    folder = tmp_path / "sleeper"
    folder.mkdir()
    repository = Clone(folder)
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
        assert repository.run(*command).returncode == 0
    (folder / "dvc.yaml").write_text(
        "stages: {nap: {cmd: 'test -e awake || { touch asleep; exec sleep 3600; }; touch out', outs: [out]}}\n"
    )
    return repository


def test_locks_of_a_living_and_of_a_killed_command(sleeper: Clone) -> None:
    expect(check_locks(sleeper.folder), "ok", "none")
    process = subprocess.Popen(
        **sleeper.command("dvc", "repro"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        # sooner, the kill could meet DVC writing its lock
        wait_until((sleeper.folder / "asleep").exists, process)
        expect(check_locks(sleeper.folder), "note", f"process {process.pid}", "is at work")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    expect(check_locks(sleeper.folder), "note", f"process {process.pid}", "was killed")
    (sleeper.folder / "awake").touch()
    assert sleeper.repro() == ["nap"], "a killed command's lock stops nobody"


def test_a_lock_whose_number_is_another_programs_now(sleeper: Clone) -> None:
    """In containers process numbers start anew: DVC takes any program with the number for the killed command."""
    (sleeper.folder / "awake").touch()
    holder = {"pid": os.getppid(), "cmd": "/bin/dvc repro"}
    lock = sleeper.folder / ".dvc/tmp/rwlock"
    lock.write_text(json.dumps({"write": {str(sleeper.folder / "out"): holder}}))
    expect(check_locks(sleeper.folder), "problem", "another program's", f"rm {lock}")
    refused = sleeper.run("dvc", "repro")
    assert refused.returncode != 0 and "is busy" in refused.stderr
    lock.write_text("{")
    expect(check_locks(sleeper.folder), "problem", "damaged", "remove it")
    assert sleeper.run("dvc", "repro").returncode != 0
    lock.unlink()
    expect(check_locks(sleeper.folder), "ok")
    assert sleeper.repro() == ["nap"]


def test_a_hardlink_lock_of_a_killed_command(sleeper: Clone) -> None:
    """With core.hardlink_lock nobody clears the lock of a killed command for a year."""
    lock = sleeper.folder / ".dvc/tmp/lock"
    hold = f"from dvc.lock import HardlinkLock; HardlinkLock({str(lock)!r}).lock(); print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    expect(check_locks(sleeper.folder, hardlink_lock=True), "ok")
    process.kill()
    process.communicate()
    expect(
        check_locks(sleeper.folder, hardlink_lock=True),
        "problem",
        f"process {process.pid}",
        f"rm {lock}",
    )


def test_sections_that_are_none_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other checks go on."""
    for name in ("check_packages", "check_torch", "check_ray"):
        monkeypatch.setattr(doctor, name, lambda *_: ok(""))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("machine: foo\nseed: 0\nevaluate: 1\n")
    found = dict(doctor.examine(tmp_path))
    assert found["parameters"].level == "problem" and {"ray", "java", "dvc"} <= found.keys()


# --- all of it ------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> Finding:
        raise ZeroDivisionError("division by zero")

    expect(guarded(broken), "note", "could not be examined", "division by zero")


def test_it_starts_where_nothing_is_installed() -> None:
    """What is missing is what it is there to find, so without any package it must get as far as its checks."""
    script = "import sys, pipelines.commands.doctor.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - {*sys.stdlib_module_names, "__main__"} == {"pipelines"}


def test_doctor_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check has its line; a real Ray instance starts; only a problem makes the status 1."""
    clone = make_clone(tmp_path / "clone")
    clone.set_params()
    # a busy machine may need minutes to start Ray
    patient = (
        "import functools; from pipelines.commands.doctor import __main__ as doctor, installation; "
        f"program = {PATIENT_RAY!r} + installation._RAY; "
        f"doctor.check_ray = functools.partial(doctor.check_ray, seconds={HANG_SECONDS}, program=program); "
        "doctor.main()"
    )
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    healthy = clone.run("python", "-c", patient)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    lines = {line[9:23].strip(): line.split()[0] for line in healthy.stdout.splitlines()}
    assert list(lines) == [
        "python", "packages", "torch", "parameters", "processor", "memory", "gpu", "ray", "java", "encoding", "git",
        "places", "dvc", "cache", "links", "feature store", "remote", "disk", "leftovers", "locks",
    ]  # fmt: skip
    assert lines["ray"] == lines["torch"] == lines["parameters"] == lines["git"] == "ok"
    assert "could not be examined" not in healthy.stdout
    changed = clone.run("git", "status", "--short").stdout.split()
    assert changed == ["M", "params.yaml"] and not (clone.folder / ".dvc/cache").exists(), (
        "it changes nothing"
    )

    clone.set_params("machine.workers=0", "machine.device=cuda:99")
    (clone.folder / "packages/features/src/diptych/features/errors.py").write_text(
        "raise ImportError('broken')\n"
    )
    ill = clone.run("python", "-m", "pipelines.commands.doctor")
    assert ill.returncode == 1 and ill.stderr == ""
    assert "problem  gpu" in ill.stdout, "it goes on where our own packages do not"
    assert "ok       ray            not used" in ill.stdout
