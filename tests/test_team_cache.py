"""Clones that share: one directory on one machine, and a DVC remote over SSH (docs/team-cache.md).

`finished_clone` runs the pipeline; everybody else here must get along without extraction and training.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipeline_clone import Clone, make_clone
from waiting import wait_until

from pipelines.commands import team_cache

# Unless told otherwise, everybody here closes what he makes to all others, as careful people and servers do.
CLOSED = 0o077
OUTPUTS = ("data", "models", "plots", "report", "metrics")


@dataclass(frozen=True)
class Done:
    """A command that ended well: what it printed, and the stages that ran in it."""

    printed: str
    stages: list[str]


def do(clone: Clone, *command: str) -> Done:
    done = subprocess.run(
        **clone.command(*command), capture_output=True, text=True, check=False, umask=CLOSED
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    prefix = "Running stage '"
    running = [line for line in done.stdout.splitlines() if line.startswith(prefix)]
    return Done(done.stdout, [line[len(prefix) :].partition("'")[0] for line in running])


def share(clone: Clone, directory: Path, *options: str) -> str:
    return do(clone, "python", "-m", "pipelines.commands.team_cache", str(directory), *options).printed


def commit(clone: Clone) -> None:
    """What docs/team-cache.md says that a team commits."""
    do(clone, "git", "add", "dvc.lock", "params.yaml", "metrics")
    do(clone, "git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "run")


def clone_of(clone: Clone, folder: Path) -> Clone:
    do(clone, "git", "clone", "--quiet", str(clone.folder), str(folder))
    return Clone(folder)


def contents(clone: Clone) -> dict[str, str]:
    """sha256 of every output."""
    files = (file for name in OUTPUTS for file in (clone.folder / name).rglob("*") if file.is_file())
    sums = {
        str(file.relative_to(clone.folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    sums.pop("metrics/stages/report.json", None)  # what making the report cost is no output
    return sums


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared directory."""
    return tmp_path_factory.mktemp("server") / "diptych"


@pytest.fixture(scope="module")
def first(finished_clone: Clone, directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The clone that ran the pipeline, then shared what it had made and committed dvc.lock."""
    clone = finished_clone.copy(tmp_path_factory.mktemp("first") / "clone")
    share(clone, directory)
    commit(clone)
    return clone


@pytest.fixture(scope="module")
def second(first: Clone, directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, Done]:
    """A teammate's new clone with the shared directory, and what his first `dvc repro --pull` did."""
    clone = clone_of(first, tmp_path_factory.mktemp("second") / "clone")
    share(clone, directory)
    return clone, do(clone, "dvc", "repro", "--pull")


# --- one directory --------------------------------------------------------------------------------------------------


def test_what_a_clone_has_made_moves_into_the_shared_directory(first: Clone, directory: Path) -> None:
    assert not (first.folder / ".dvc/cache").exists()
    assert (first.folder / ".cache/features").readlink() == directory / "features"
    assert list((directory / "features").glob("*/part-*.parquet"))
    assert do(first, "dvc", "status", "dvc.yaml").printed.strip() == "Data and pipelines are up to date."
    settings = do(first, "dvc", "config", "--list", "--local").printed.splitlines()
    assert {f"cache.dir={directory / 'dvc'}", "cache.shared=group"} <= set(settings)
    assert first.run("git", "status", "--short").stdout == "", "nothing that is the team's changed"


def test_files_are_on_disk_once(first: Clone, directory: Path) -> None:
    do(first, "dvc", "checkout", "--relink")
    if "reflink" in team_cache.working_links(directory / "dvc", first.folder):
        pytest.skip("reflinks cannot be told from copies")
    cached = {file.stat().st_ino for file in (directory / "dvc/files").rglob("*") if file.is_file()}
    for name in ("data", "models", "report"):
        files = [file for file in (first.folder / name).rglob("*") if file.is_file()]
        assert (
            files
            and [file for file in files if file.stat().st_ino not in cached and file.stat().st_size] == []
        )


def test_the_second_clone_runs_no_stage(first: Clone, second: tuple[Clone, Done]) -> None:
    clone, repro = second
    assert repro.stages == []
    assert "Data and pipelines are up to date." in repro.printed
    assert contents(clone) == contents(first)
    assert len(contents(clone)) > 250
    assert clone.run("git", "status", "--short").stdout == "", "dvc.lock is as it was committed"
    assert do(clone, "dvc", "repro").stages == []


@pytest.fixture(scope="module")
def other_parameters(
    second: tuple[Clone, Done], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Clone, Done]:
    """A third clone that wants other codes and other parts: DVC has to run its extract stage."""
    clone, _ = second
    third = clone.copy(tmp_path_factory.mktemp("third") / "clone")
    third.set_params("cluster.k=24", "extract.part_size=50")
    return third, do(third, "dvc", "repro", "shard")


def test_other_parameters_extract_nothing(other_parameters: tuple[Clone, Done]) -> None:
    _, repro = other_parameters
    assert repro.stages == ["extract", "cluster", "shard"]
    assert "images: 240, extracted: 0, reused: 240, failed: 0" in repro.printed


def test_a_run_of_one_clone_is_nobody_elses_work(
    first: Clone, other_parameters: tuple[Clone, Done], tmp_path: Path
) -> None:
    """The run cache: the same parameters in another clone, without the dvc.lock of who ran them."""
    clone = first.copy(tmp_path / "clone")
    clone.set_params("cluster.k=24", "extract.part_size=50")
    repro = do(clone, "dvc", "repro", "shard")
    assert repro.stages == []
    assert repro.printed.count("is cached - skipping run") == 3
    assert (
        contents(clone)["data/shards/index.json"] == contents(other_parameters[0])["data/shards/index.json"]
    )


def test_the_group_can_use_what_was_made(directory: Path, other_parameters: tuple[Clone, Done]) -> None:
    """All commands here ran with umask 077: nothing in the directory may be closed for that."""
    if not team_cache.new_folders_are_shared(directory / "features", CLOSED):
        pytest.skip(
            "this file system keeps no default permissions (ACLs); there docs/team-cache.md asks for umask 002"
        )
    program = (
        "import numpy, sys; from pathlib import Path; from diptych.features.store import FeatureStore\n"
        "store = FeatureStore(Path(sys.argv[1]), {'detector': 'another', 'feature_dim': 4})\n"
        "store.append(['a'], ['0' * 64], numpy.zeros((1, 64, 4), numpy.float16))"
    )
    do(other_parameters[0], "python", "-c", program, str(directory / "features"))
    folders = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert (
        len(folders) > 100
        and len(files) > 250
        and any("another" in path.read_text() for path in files if path.name == "_meta.json")
    )
    group = directory.stat().st_gid
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) & 0o2775 == 0o2775 and folder.stat().st_gid == group, (
            folder
        )
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) & 0o440 == 0o440, file
    assert list(team_cache.closed_in(directory / "features")) == []
    runs = list((directory / "dvc/runs").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in runs if path.is_file()} <= {0o664, 0o644}
    assert 0o664 in {stat.S_IMODE(path.stat().st_mode) for path in runs if path.is_file()}, (
        "cache.shared is in force"
    )


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(CLOSED)
    yield
    os.umask(before)


def test_again_changes_nothing(clone: Clone, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    assert f"{shared}: created" in share(clone, shared)
    before = (clone.folder / ".dvc/config.local").read_text()
    again = share(clone, shared)
    assert f"{shared}: there already" in again and again.count("(as before)") == 2
    assert (clone.folder / ".dvc/config.local").read_text() == before


def test_a_closed_umask_closes_nothing(tmp_path: Path, closed_umask: None) -> None:
    line = team_cache.make_shared(tmp_path / "shared", None)
    assert "created, mode 2775" in line
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o2775
    if not team_cache.new_folders_are_shared(tmp_path / "shared"):
        pytest.skip("this file system keeps no default permissions (ACLs)")
    (tmp_path / "shared/a/b").mkdir(parents=True)
    (tmp_path / "shared/a/file").touch()
    assert team_cache.is_shared(tmp_path / "shared/a/b")
    assert stat.S_IMODE((tmp_path / "shared/a/file").stat().st_mode) == 0o664


def test_without_default_permissions_it_says_so(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    lines = list(team_cache.set_up(tmp_path / "shared", clone=clone.folder))
    assert [line for line in lines if "umask 002" in line and str(tmp_path / "shared") in line]


def test_what_is_older_is_opened(clone: Clone, tmp_path: Path) -> None:
    old, lock = tmp_path / "shared/dvc/files/md5/ab", tmp_path / "shared/features/key/runs/lock"
    for folder in (old, lock.parent):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    lock.touch(0o644)
    assert "to the group" in share(clone, tmp_path / "shared")
    assert team_cache.is_shared(old) and team_cache.is_shared(lock.parent)
    assert lock.stat().st_mode & stat.S_IWGRP
    assert list(team_cache.closed_in(tmp_path / "shared/features")) == []
    assert "older" not in share(clone, tmp_path / "shared").replace(str(tmp_path), "")


def test_features_of_both_are_kept(clone: Clone, tmp_path: Path) -> None:
    """A clone with features of its own joins a store that has some already."""
    own, shared = clone.folder / ".cache/features", tmp_path / "shared/features"
    for folder, name in (
        (own / "key", "part-own"),
        (shared / "key", "part-theirs"),
        (own / "key2", "part-own2"),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
        (folder / "_meta.json").write_text("{}")
    (own / "key/part-own").chmod(0o600)
    (own / "key2/part-own2").chmod(0o444)
    assert "3 files moved" in share(clone, tmp_path / "shared")
    assert own.readlink() == shared
    names = sorted(str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file())
    assert names == ["key/_meta.json", "key/part-own", "key/part-theirs", "key2/_meta.json", "key2/part-own2"]
    assert (own / "key/part-own").read_text() == "part-own"
    assert stat.S_IMODE((own / "key/part-own").stat().st_mode) == 0o664, (
        "a lock of the store is written to by others"
    )
    assert stat.S_IMODE((own / "key2/part-own2").stat().st_mode) == 0o444, "DVC's protected files stay so"


def test_to_another_file_system(clone: Clone) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == clone.folder.stat().st_dev:
        pytest.skip("/dev/shm is no second file system here")
    run = clone.folder / ".dvc/cache/runs/ab/abc/run"
    run.parent.mkdir(parents=True)
    run.write_text("run")
    os.utime(run, (1_000_000_000, 1_000_000_000))
    shared = Path(tempfile.mkdtemp(dir=memory))
    try:
        assert "cache.type symlink;" in share(clone, shared)
        moved = shared / "dvc/runs/ab/abc/run"
        assert moved.read_text() == "run" and not run.exists()
        assert moved.stat().st_mtime == 1_000_000_000, "DVC takes the newest of several runs"
        assert do(clone, "dvc", "repro", "dataset").stages == ["code", "dataset"]
        table = clone.folder / "data/dataset/manifest.parquet"
        assert table.is_symlink() and str(shared) in str(table.readlink())
    finally:
        shutil.rmtree(shared)


def test_types_of_links() -> None:
    assert team_cache.best_cache_types(["reflink", "hardlink", "symlink"]) == ["reflink", "copy"]
    assert team_cache.best_cache_types(["hardlink", "symlink"]) == ["hardlink", "symlink"]
    assert team_cache.best_cache_types(["symlink"]) == ["symlink"]
    assert team_cache.best_cache_types(["hardlink"]) == ["hardlink", "copy"]
    assert team_cache.best_cache_types([]) == ["copy"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("inside", "lies inside this clone"),
        ("parent", "install -d -m 2775 -g GROUP"),
        ("file", "is a file"),
        ("group", "there is no group nobody-has-this"),
        ("remote", "is no remote"),
        ("store", "machine.feature_store is /elsewhere: set it to .cache/features"),
        ("params", "params.yaml"),
        ("lock", "rwlock is damaged"),
        ("busy", "is at work in this clone"),
        ("config", "config"),
        ("elsewhere", "run this where dvc.yaml is"),
    ],
)
def test_what_must_be_mended_is_one_line(case: str, words: str, clone: Clone, tmp_path: Path, run_here) -> None:
    folder, options, process = tmp_path / "shared", [], None
    (clone.folder / ".dvc/tmp").mkdir(exist_ok=True)
    if case == "inside":
        folder = clone.folder / "shared"
    elif case == "parent":
        folder = tmp_path / "missing/shared"
    elif case == "file":
        folder.touch()
    elif case == "group":
        options = ["--group", "nobody-has-this"]
    elif case == "remote":
        options = ["--remote", "server/path"]
    elif case == "store":
        clone.set_params("machine.feature_store=/elsewhere")
    elif case == "params":
        (clone.folder / "params.yaml").unlink()
    elif case == "lock":
        (clone.folder / ".dvc/tmp/rwlock").write_text("{")
    elif case == "busy":
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", "dvc"])
        entry = f'{{"write": {{"out": {{"pid": {process.pid}, "cmd": "dvc repro"}}}}}}'
        (clone.folder / ".dvc/tmp/rwlock").write_text(entry)
    elif case == "config":
        (clone.folder / ".dvc/config").write_text("[nothing]\n    of = this\n")
    else:
        shutil.rmtree(clone.folder / ".dvc")
    failed = run_here(clone.folder, team_cache.main, str(folder), *options)
    if process:
        process.kill()
        process.wait()
    assert failed.status == 1
    assert words in failed.stderr and failed.stderr.count("\n") == 1, failed.stderr
    assert (
        not (clone.folder / ".dvc/config.local").exists() and not (clone.folder / ".cache/features").exists()
    )
    if case != "file":
        assert not folder.exists(), "nothing is made before all is known to be right"


# --- an SSH remote --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """An sshd on loopback, reached as `host` by who has `home` as home directory."""

    host: str
    home: Path
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """sshd as this user, with its own keys, settings and port; its umask is closed, and its sftp set to 002."""
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed")
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    sshd, keygen = shutil.which("sshd", path=places), shutil.which("ssh-keygen")
    if sshd is None or keygen is None:
        pytest.skip("no sshd here: apt-get install openssh-server")
    if os.geteuid() == 0:  # started by root, sshd wants a folder that its init script makes
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    work = tmp_path_factory.mktemp("ssh")
    home, folder = work / "home", work / "remote"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    folder.mkdir()
    folder.chmod(0o2775)
    for name in ("host_key", "user_key"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", work / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (work / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {work}/host_key\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {work}/user_key.pub\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp -u 0002\n"
    )
    (home / ".ssh/config").write_text(
        f"Host team-server\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {work}/user_key\n"
    )

    log = (work / "log").open("w")
    process = subprocess.Popen([sshd, "-D", "-e", "-f", work / "sshd_config"], stderr=log, umask=CLOSED)
    try:
        wait_until(lambda: process.poll() is not None or "listening" in (work / "log").read_text())
        if process.poll() is not None:
            pytest.skip(f"sshd does not start: {(work / 'log').read_text().strip()}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            yield Server("team-server", home, folder)
    finally:
        process.terminate()
        process.wait()
        log.close()


def test_through_an_ssh_remote_the_second_clone_runs_no_stage(
    first: Clone, directory: Path, server: Server, other_parameters: tuple[Clone, Done], tmp_path: Path
) -> None:
    """On another machine: its own empty cache, and nothing but git and the remote."""
    url = f"ssh://{server.host}{server.folder}/dvc"
    for clone in (first, other_parameters[0]):
        said = share(clone, directory, "--remote", url)
        assert f"remote team {url}" in said and f"{url}: reached" in said
        assert "pushed" in do(clone, "dvc", "push", "--run-cache").printed
    made = [path for path in server.folder.rglob("*") if path.is_dir()]
    assert len(made) > 100
    assert [path for path in made if not path.stat().st_mode & stat.S_IWGRP] == [], "others push there too"

    clone = clone_of(first, tmp_path / "clone")
    do(clone, "dvc", "remote", "add", "--local", "--default", "team", url)
    repro = do(clone, "dvc", "repro", "--pull")
    assert repro.stages == []
    assert contents(clone) == contents(first)
    assert clone.run("git", "status", "--short").stdout == ""

    # What somebody ran and pushed with its runs is found without his dvc.lock; but a stage with metrics that only
    # git keeps (cluster) runs again, since no remote has them. With his dvc.lock and metrics nothing runs.
    clone.set_params("cluster.k=24", "extract.part_size=50")
    repro = do(clone, "dvc", "repro", "--pull", "shard")
    assert repro.stages == ["cluster"]
    assert repro.printed.count("is cached - skipping run") == 2, "extract and shard"

    other = other_parameters[0]
    commit(other)
    another = clone_of(other, tmp_path / "another")
    do(another, "dvc", "remote", "add", "--local", "--default", "team", url)
    assert do(another, "dvc", "repro", "--pull", "shard").stages == []
    names = ("data/features/", "data/codebook/", "data/shards/", "metrics/cluster")
    made_by_other = {name: value for name, value in contents(other).items() if name.startswith(names)}
    assert made_by_other.items() <= contents(another).items()


def test_a_remote_that_cannot_be_reached_is_one_line(server: Server, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")

    def refused(host: str) -> str:
        url = f"ssh://{host}{server.folder}/other"
        failed = clone.run("python", "-m", "pipelines.commands.team_cache", str(tmp_path / "shared"), "--remote", url)
        assert failed.returncode == 1
        assert f"{url} cannot be used yet" in failed.stderr and f"`ssh ssh://{host} true`" in failed.stderr
        assert failed.stderr.count("\n") == 1, failed.stderr
        return failed.stderr

    settings = (server.home / ".ssh/config").read_text()
    (server.home / ".ssh/config").write_text(settings.replace("user_key", "host_key"))
    assert "Permission denied" in refused(server.host)
    (server.home / ".ssh/config").write_text(settings)
    assert "Connect call failed" in refused("127.0.0.1:1")
