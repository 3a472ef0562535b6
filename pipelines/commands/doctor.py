"""What this machine and this clone lack to run the pipeline, and what to do: `make doctor`.

One line a check: `ok`, a `note` (it runs, but not as well as it could, or not for everybody), or a `problem` that
prevents a run. Status 1 if there is a problem. Nothing is changed; what is tried is removed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import locale
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Third-party packages and our own that need them are imported inside the checks: one that is missing is a finding.

COCO_IMAGES = 123_287  # of train2014 and val2014 together
CELLS = 64
GIB = 2**30
PEAK_MEMORY = {"smoke": 2.0, "toybox": 3.1}  # GiB of a whole run, measured (metrics/stages.json)
RAY_SECONDS = 60.0
_RANK = {"ok": 0, "note": 1, "problem": 2}


@dataclass(frozen=True)
class Finding:
    """What one check found: level `ok`, `note` or `problem`, and a line that says what is and what to do."""

    level: str
    text: str


def ok(text: str) -> Finding:
    """All is well."""
    return Finding("ok", text)


def note(text: str) -> Finding:
    """A run is possible; something could be better."""
    return Finding("note", text)


def problem(text: str) -> Finding:
    """This prevents a run."""
    return Finding("problem", text)


def together(findings: Iterable[Finding]) -> Finding:
    """One finding of several: the worst level, and the texts of that level (all of them where all is well)."""
    found = list(findings)
    worst = max((finding.level for finding in found), key=_RANK.__getitem__)
    return Finding(worst, "; ".join(finding.text for finding in found if finding.level == worst))


# --- the machine ----------------------------------------------------------------------------------------------------


def check_python(
    version: Sequence[int] = sys.version_info[:3],
    executable: str = sys.executable,
    on_path: str | None = None,
) -> Finding:
    """Python is new enough, and it is the one that stages will start as `python`."""
    spelled = ".".join(map(str, version))
    if tuple(version[:2]) < (3, 11):
        return problem(f"{spelled}: 3.11 or newer is needed: make run PYTHON=python3.11")
    started = on_path if on_path is not None else shutil.which("python")
    folder = Path(executable).parent
    if started is None or Path(started).parent != folder:
        return note(
            f"{spelled} in {folder}, but stages start as `python`, which is {started or 'missing'}: use make, or "
            f"export PATH={folder}:$PATH before dvc"
        )
    return ok(f"{spelled} in {folder}")


def check_packages(root: Path, version_of: Callable[[str], str] = importlib.metadata.version) -> Finding:
    """What the three packages and the pipeline require is installed, in the versions of constraints.txt."""
    pins = dict(
        re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    )
    required = _required(root)
    missing, other = [], []
    for name in sorted({*required, *pins}, key=str.lower):
        try:
            found = version_of(name)
        except importlib.metadata.PackageNotFoundError:
            if _plain(name) in {_plain(other_name) for other_name in required}:
                missing.append(name)
            continue  # a tool of `make test`
        if name in pins and found.partition("+")[0] != pins[name]:  # torch calls its builds 2.12.1+cu130
            other.append(f"{name} {found} instead of {pins[name]}")
    mend = "make setup" if (root / ".venv").exists() else "make run"
    if missing:
        return problem(f"missing: {', '.join(missing)}: `{mend}` installs them")
    if other:
        return note(
            f"not as constraints.txt pins them: {', '.join(other)}: results may differ; `{mend}` mends it"
        )
    return ok(f"{len(required)} required ones are there, in the versions of constraints.txt")


def _required(root: Path) -> set[str]:
    """Names that the packages' pyproject.toml files, with the extras that the Makefile installs, and its PIPELINE list."""
    import tomllib

    required: set[str] = set()
    makefile = (root / "Makefile").read_text("utf-8")
    installed = dict(re.findall(r"packages/(\w+)\[([\w,]+)\]", makefile))
    for project in root.glob("packages/*/pyproject.toml"):
        content = tomllib.loads(project.read_text("utf-8"))["project"]
        extras = content.get("optional-dependencies", {})
        required.update(content.get("dependencies", []))
        for extra in installed.get(project.parent.name, "").split(","):
            required.update(extras.get(extra, []))
    if line := re.search(r"^PIPELINE\s*:=(.*)$", makefile, re.MULTILINE):
        required.update(line[1].split())
    names = {re.split(r"[\s<>=!~;\[]", requirement.strip())[0] for requirement in required}
    return {name for name in names if name and not name.startswith("diptych")}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_torch() -> Finding:
    """torch and torchvision are builds that go together: a compiled operator of torchvision runs."""
    mend = "pip install --force-reinstall --constraint constraints.txt torch torchvision"
    try:
        import torch
        import torchvision
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:  # noqa: BLE001  (a mismatch shows as ImportError, RuntimeError, OSError, ...)
        return problem(f"torch and torchvision do not go together ({_one_line(error)}): {mend}")
    return ok(f"torch {torch.__version__} and torchvision {torchvision.__version__} go together")


def check_processor(threads: int | str, cores: int, quota: float | None) -> Finding:
    """machine.threads fits the cores this process may use, and a container's share of them."""
    wanted = cores if threads == "auto" else int(threads)
    if quota is not None and quota < wanted:
        return note(
            f"{wanted} threads, but this container gets the time of {quota:g} cores: set machine.threads to "
            f"{max(1, int(quota))} in params.yaml"
        )
    if wanted > cores:
        return note(f"machine.threads is {wanted}, more than the {cores} cores here: set it to auto")
    return ok(f"{cores} cores, {wanted} threads for a stage")


def cpu_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores' worth of time that the container may use; None without a limit."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def check_memory(profile: str | None, total: float, available: float) -> Finding:
    """total, available: GiB. What a run of the profile took where it was measured is there."""
    said = f"{available:.1f} of {total:.1f} GiB free"
    peak = PEAK_MEMORY.get(profile or "")
    if peak is not None and total < peak:
        return problem(
            f"{said}, and {profile} needs {peak:g}: a larger machine, or make profile PROFILE=smoke"
        )
    if peak is not None and available < peak:
        return note(f"{said}, and {profile} needs {peak:g}: close other programs, or lower machine.workers")
    return ok(said if peak is None else f"{said}; {profile} needs {peak:g}")


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[float, float]:
    """Total and available memory in GiB, of the container where that has less than the machine."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(), re.MULTILINE)
        used -= int(cached[1]) if cached else 0  # files read before, given back when memory is wanted
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total / GIB, available / GIB


def check_gpu(device: str, cuda: Sequence[str], build: str | None, driver: str | None) -> Finding:
    """cuda: names of the devices that torch sees. build: torch's CUDA version. driver: NVIDIA's, None if there is none."""
    wanted = device.startswith("cuda")
    if cuda:
        names = ", ".join(f"{count} x {name}" for name, count in Counter(cuda).items())
        return ok(f"{names}; driver {driver or 'unknown'}, torch built for CUDA {build}")
    level = problem if wanted else note
    if driver is not None and build is None:
        return level(
            f"driver {driver} is there, but torch is a build without CUDA: install torch's CUDA build"
        )
    if driver is not None:
        return level(
            f"driver {driver} is there, but torch (CUDA {build}) sees no device: is CUDA_VISIBLE_DEVICES empty, "
            "or the driver older than that CUDA?"
        )
    if wanted:
        return problem(f"machine.device is {device}, and there is no GPU: set it to auto in params.yaml")
    return ok("none: everything runs on the processor")


def find_gpus() -> tuple[list[str], str | None, str | None]:
    """What check_gpu wants to know of this machine."""
    import torch

    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    driver = None
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        driver = found[0] if (found := re.search(r"\d+\.\d+(\.\d+)?", text)) else "unknown"
    return names, torch.version.cuda, driver


_RAY = """
import logging, os, sys
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray
address = sys.argv[1]
local = dict(num_cpus=1, object_store_memory=100 << 20) if address == "local" else {}
ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **local)
assert ray.get(ray.remote(lambda: 42).remote()) == 42
ray.shutdown()
"""


def check_ray(
    workers: int | str = "auto", address: str | None = None, seconds: float = RAY_SECONDS, program: str = _RAY
) -> Finding:
    """A Ray instance starts (or the cluster at `address` answers) and runs a task, within `seconds`."""
    if workers == 0:
        return ok("not used: machine.workers is 0")
    instead = "set machine.workers to 0 in params.yaml to extract without Ray"
    what = f"the cluster at {address}" if address else "an instance"
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, address or "local"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return problem(f"{what} did not answer within {seconds:g} s (firewall, proxy, full /tmp?): {instead}")
    if process.returncode:
        reason = ([line for line in errors.splitlines() if line.strip()] or ["no message"])[-1]
        return problem(f"{what} failed ({_one_line(reason)}): {instead}")
    return ok(f"{what} ran a task, {time.monotonic() - start:.0f} s")


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def check_java(command: str = "java") -> Finding:
    """Only some caption metrics of other projects need Java; never a problem."""
    path = shutil.which(command)
    uses = "METEOR and SPICE of pycocoevalcap need it, nothing else"
    if path is None:
        return note(f"missing ({uses}): apt-get install default-jre-headless")
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return note(
            f"{path} does not start ({_one_line(error)}; {uses}): apt-get install default-jre-headless"
        )
    if done.returncode:
        return note(f"{path} fails ({_one_line(done.stderr)}; {uses}): apt-get install default-jre-headless")
    return ok(f"{(done.stderr or done.stdout).splitlines()[0]} ({uses})")


def check_encoding(preferred: str | None = None) -> Finding:
    """Texts are UTF-8: captions, manifests, logs."""
    found = preferred or locale.getpreferredencoding(False)
    if _plain(found).replace("-", "") != "utf8":
        return note(
            f"this locale's encoding is {found}: export LC_ALL=C.UTF-8, or texts beyond ASCII may fail to print"
        )
    return ok("UTF-8")


# --- the clone ------------------------------------------------------------------------------------------------------


def check_git(clone: Path) -> Finding:
    """git is there and this is a clone."""
    if shutil.which("git") is None:
        return problem("missing, DVC needs it: apt-get install git")
    done = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=clone, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return problem(
            f"{clone} cannot be used as a clone ({_one_line(done.stderr)}): git clone, not an archive"
        )
    if not (clone / ".dvc/config").exists():
        return problem(f"{clone}/.dvc/config is missing: git checkout .dvc")
    return ok(f"clone in {done.stdout.strip()}")


def check_params(clone: Path) -> Finding:
    """params.yaml is right, section by section, and the dataset is where it says."""
    from ruamel.yaml import YAML

    from pipelines.runner.check import check_params as check_sections
    from pipelines.runner.params import ParameterError, read_params

    try:
        params = read_params(clone / "params.yaml")
        check_sections(
            params, list(YAML(typ="safe").load(clone / "dvc.yaml")["stages"]), clone / "params.yaml"
        )
    except ParameterError as error:
        return problem(str(error))
    if not (clone / (source := params["dataset"]["source"])).exists():
        return problem(
            f"{source}: no such dataset folder: put the data there or set dataset.source in params.yaml"
        )
    return ok(f"params.yaml is right (profile {profile_of(params)})")


def check_links(clone: Path, cache: Path, types: Sequence[str]) -> Finding:
    """DVC can link from its cache into the clone as cache.type says; really tried."""
    from pipelines.commands.team_cache import best_cache_types, working_links

    made = not cache.exists()
    works = [*working_links(cache, clone), "copy"]
    if made:  # DVC makes it with its own permissions
        cache.rmdir()
    said = f"from {cache} work: {', '.join(works)}; cache.type is {', '.join(types)}"
    best = best_cache_types(works)
    mend = f"dvc config --local cache.type {','.join(best)} && dvc checkout --relink"
    if not set(types) & set(works):
        return problem(f"{said}: {mend}")
    # a list that names a copy or an impossible reflink first keeps every written folder twice
    if best[0] != "copy" and types[0] in ("copy", "reflink") and types[0] != best[0]:
        return note(f"{said}, so what a stage writes stays on disk twice: {mend}")
    if foreign := _link_to_foreign_file(cache, clone):
        if "symlink" not in types and "reflink" not in works:
            return note(f"{said}, and {foreign}: dvc config --local cache.type hardlink,symlink")
        return ok(f"{said}; {foreign}: those become symbolic links")
    return ok(said)


def _link_to_foreign_file(cache: Path, clone: Path) -> str | None:
    """Why a cached file of another user cannot be linked, or None."""
    from pipelines.commands.team_cache import owner_of

    foreign = (path for path in cache.glob("files/md5/*/*") if path.stat().st_uid != os.geteuid())
    if (path := next(foreign, None)) is None:
        return None
    trial = clone / f".trial-{os.getpid()}"
    try:
        os.link(path, trial)
        trial.unlink()
    except PermissionError:
        return f"hard links to files of {owner_of(path)} are refused (fs.protected_hardlinks)"
    except OSError:
        return None
    return None


def check_shared_folder(folder: Path, shared: bool) -> Finding:
    """`folder` (DVC's cache or the feature store) can be written to; where it is shared, by the whole group.

    shared: it is meant for several users.
    """
    from pipelines.commands.team_cache import closed_in, group_of, is_shared, new_folders_are_shared, owner_of

    if shared and not folder.exists():
        return problem(
            f"{folder.resolve()} does not exist: is its file system mounted? If so, make team-cache "
            f"DIRECTORY={folder.resolve().parent}"
        )
    target = folder
    while not target.exists():  # it is made at the first run
        target = target.parent
    if not os.access(target, os.W_OK | os.X_OK):
        return problem(
            f"{target} is not writable for you: `usermod -aG {group_of(target)} YOU` by an administrator, or change "
            f"its owner ({owner_of(target)})"
        )
    full = os.R_OK | os.W_OK | os.X_OK
    closed = [path for path in closed_in(folder) if not os.access(path, full if path.is_dir() else os.W_OK)]
    if closed:
        owners = ", ".join(sorted({owner_of(path) for path in closed}))
        return problem(
            f"{len(closed)} folders or locks in {folder} are closed to you, such as {closed[0].name}: make team-cache "
            f"DIRECTORY={folder.resolve().parent} by {owners}"
        )
    if not shared:
        return ok(f"{folder}, of this clone only")
    mend = f"make team-cache DIRECTORY={folder.resolve().parent} by {owner_of(target)}"
    if not is_shared(target):
        return note(f"{folder} is not open to its group {group_of(target)}: {mend}")
    if not new_folders_are_shared(target):
        return note(
            f"folders you make in {folder} are closed to others: {mend}, or `umask 002` in ~/.profile"
        )
    return ok(f"{folder.resolve()}, shared with group {group_of(target)}")


def check_remote(name: str | None, url: str | None) -> Finding:
    """The default remote's protocol is installed. Whether its host answers, `dvc push` says."""
    from pipelines.commands.team_cache import TeamCacheError, check_remote_url

    if name is None or url is None:
        return ok("none: outputs stay on this machine (docs/team-cache.md)")
    try:
        check_remote_url(url)
    except TeamCacheError as error:
        return note(str(error))
    return ok(f"{name}: {url}")


def check_space(
    places: Mapping[str, tuple[Path, float]], free: Callable[[Path], int] | None = None
) -> Finding:
    """Each file system has room for what the profile still has to write on it.

    places: what -> (folder, bytes); those of one file system are added up.
    """
    free = free or (lambda path: shutil.disk_usage(path).free)
    needs: dict[int, tuple[Path, float]] = {}
    for folder, size in places.values():
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        needs[device] = (
            needs[device][0] if device in needs else folder,
            needs.get(device, (folder, 0.0))[1] + size,
        )
    findings = []
    for folder, size in needs.values():
        room = free(folder)
        said = f"{folder}: about {_size(size)} to be written, {_size(room)} free"
        findings.append(
            ok(said) if room >= size else problem(f"{said}: make room, or share a cache (docs/team-cache.md)")
        )
    return together(findings)


def space_needed(
    params: Mapping[str, Any], clone: Path, cache: Path, store: Path, linked: bool
) -> dict[str, tuple[Path, float]]:
    """Where a run of `params` writes how many bytes, for check_space, less what lies there already.

    Features dominate: 64 cells x D x 2 bytes an image, once in the store, once as DVC's output (none where that is
    linked from the store), once more in the shards. linked: DVC links from its cache; else the clone holds copies.
    """
    features = float(image_count(params, clone) * CELLS * feature_dim(params) * 2)
    networks = 0.1 * GIB
    near_store, near_cache = _device(clone) == _device(store), _device(clone) == _device(cache)
    cached = features + networks + (0 if linked and near_store and near_cache else features)
    if linked:
        in_clone = 0 if near_cache else features  # one folder at a time, until DVC has moved it to its cache
    else:
        in_clone = features + networks + (0 if near_store else features)
    return {
        "feature store": (store, max(0.0, features - _used(store))),
        "DVC's cache": (cache, max(0.0, cached - _used(cache))),
        "this clone": (clone, max(0.0, in_clone - _used(clone / "data"))),
    }


def image_count(params: Mapping[str, Any], clone: Path) -> int:
    """Images of the dataset: from its table if that was made, else what Toybox will draw or COCO 2014 has."""
    scenes = clone / "data/dataset/scenes.parquet"
    if scenes.exists():
        import pyarrow.parquet as pq

        return pq.ParquetFile(scenes).metadata.num_rows
    if toybox := params.get("dataset", {}).get("toybox"):
        return sum(
            int(toybox.get(split, 0)) for split in ("train", "val", "test", "compositional", "ablation")
        )
    return COCO_IMAGES


def feature_dim(params: Mapping[str, Any]) -> int:
    """D of the detector's features; the papers' where params.yaml does not say."""
    network = params.get("detector", {}).get("network") or {}
    return int(network.get("feature_dim", 2048))


def check_leftovers(clone: Path) -> Finding:
    """What killed runs left: half-written outputs, and states that the stages go on from."""
    found = []
    for name in ("data", "models", "plots", "report", "metrics"):
        for parent, folders, files in os.walk(clone / name):
            found += [Path(parent, entry) for entry in (*folders, *files) if entry.startswith(".partial-")]
            folders[:] = [folder for folder in folders if not folder.startswith(".partial-")]
    states = [
        path
        for name in ("training", "unfinished")
        for path in (clone / ".cache" / name).glob("*/*")
        if any(path.iterdir())
    ]
    findings = []
    if found:
        names = " ".join(str(path.relative_to(clone)) for path in found)
        findings.append(note(f"a killed stage left {_size(sum(map(_used, found)))}: rm -r {names}"))
    if states:
        stages = ", ".join(sorted({path.parent.name for path in states}))
        findings.append(
            note(
                f"stopped runs of {stages} ({_size(sum(map(_used, states)))}) go on with `dvc repro`; to forget them: "
                "rm -r .cache/training .cache/unfinished"
            )
        )
    return together(findings or [ok("none")])


def check_locks(clone: Path, hardlink_lock: bool = False) -> Finding:
    """Nothing but a living DVC command locks this clone."""
    from pipelines.commands.team_cache import TeamCacheError, running_commands

    temporary = clone / ".dvc/tmp"
    try:
        commands = running_commands(clone)
    except TeamCacheError as error:
        return problem(str(error))
    findings = []
    for command in commands:
        said = f"{temporary}/rwlock: `{command.text}` (process {command.pid})"
        if command.alive:
            findings.append(note(f"{said} is at work: another `dvc repro` here waits for it or is refused"))
        elif command.alive is None:
            findings.append(
                problem(
                    f"{said} is gone, and its number is another program's, which DVC waits for: rm {temporary}/rwlock"
                )
            )
        else:
            findings.append(note(f"{said} was killed; the next DVC command clears that up"))
    if hardlink_lock and (dead := _dead_hardlink_lock(temporary / "lock")):
        findings.append(
            problem(f"{temporary}/lock is held by process {dead}, which is gone: rm {temporary}/lock")
        )
    elif not findings and not hardlink_lock and _is_locked(temporary / "lock"):
        findings.append(note(f"{temporary}/lock: a DVC command is at work in this clone"))
    return together(findings or [ok("none")])


def _is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file (the system lets go of it when a process dies)."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _dead_hardlink_lock(path: Path) -> int | None:
    """The process of this host that holds a lock of core.hardlink_lock (`...|host|process|number`) and is gone."""
    import psutil

    try:
        *_, host, pid, _number = path.read_text().strip().split("|")
        return int(pid) if host == socket.gethostname() and not psutil.pid_exists(int(pid)) else None
    except (OSError, ValueError):
        return None


# --- all of it ------------------------------------------------------------------------------------------------------


def profile_of(params: Mapping[str, Any]) -> str | None:
    """The name of the profile that params.yaml was written from."""
    return (params.get("report") or {}).get("profile")


def examine(clone: Path) -> Iterable[tuple[str, Finding]]:
    """Run all checks on this machine and `clone`; (name, finding) as they come."""
    yield "python", check_python()
    yield "packages", _guarded(lambda: check_packages(clone))
    yield "torch", _guarded(check_torch)
    yield "parameters", _guarded(lambda: check_params(clone))
    params = _read_leniently(clone)
    machine = params.get("machine") or {}
    threads, workers, device = (machine.get(key, "auto") for key in ("threads", "workers", "device"))

    def processor() -> Finding:
        from pipelines.runner.stage import available_cores

        return check_processor(threads, available_cores(), cpu_quota())

    yield "processor", _guarded(processor)
    yield "memory", _guarded(lambda: check_memory(profile_of(params), *memory()))
    yield "gpu", _guarded(lambda: check_gpu(str(device), *find_gpus()))
    yield "ray", _guarded(lambda: check_ray(workers, (params.get("extract") or {}).get("ray_address")))
    yield "java", _guarded(check_java)
    yield "encoding", check_encoding()
    yield "git", _guarded(lambda: check_git(clone))

    try:
        from pipelines.commands.team_cache import open_repository

        repo = open_repository(clone)
    except Exception as error:  # noqa: BLE001  (without DVC there is nothing more to examine)
        yield "dvc", problem(_one_line(error))
        return
    cache, settings, core = Path(repo.cache.legacy.path), repo.config["cache"], repo.config["core"]
    store = clone / str(machine.get("feature_store", ".cache/features"))
    remote = core.get("remote")
    version = importlib.metadata.version("dvc")
    repo.close()
    shared = settings.get("shared") == "group"
    yield "dvc", ok(f"{version}, cache in {cache}{', shared with a group' if shared else ''}")
    yield "cache", _guarded(lambda: check_shared_folder(cache, shared))
    types = list(repo.cache.local.cache_types)
    links = _guarded(lambda: check_links(clone, cache, types))
    yield "links", links
    yield "feature store", _guarded(lambda: check_shared_folder(store, store.is_symlink()))
    yield "remote", _guarded(lambda: check_remote(remote, repo.config["remote"].get(remote, {}).get("url")))
    linked = links.level == "ok" and types[0] != "copy"
    yield "disk", _guarded(lambda: check_space(space_needed(params, clone, cache, store, linked)))
    yield "leftovers", _guarded(lambda: check_leftovers(clone))
    yield "locks", _guarded(lambda: check_locks(clone, bool(core.get("hardlink_lock"))))


def _guarded(check: Callable[[], Finding]) -> Finding:
    """A check that cannot be made is itself a finding, and the others go on."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001
        return note(f"could not be examined ({type(error).__name__}: {_one_line(error)})")


def _read_leniently(clone: Path) -> Mapping[str, Any]:
    """params.yaml as far as it can be read: what is wrong with it is another check's finding."""
    try:
        from ruamel.yaml import YAML

        params = YAML(typ="safe").load(clone / "params.yaml")
    except Exception:  # noqa: BLE001
        return {}
    return params if isinstance(params, dict) else {}


def _device(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _used(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for parent, _, names in os.walk(path.resolve()):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def main() -> None:
    """Print a line for every check of this folder's clone; status 1 where something prevents a run."""
    problems = 0
    for name, finding in examine(Path.cwd()):
        problems += finding.level == "problem"
        print(f"{finding.level:<8} {name:<14} {finding.text}", flush=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
