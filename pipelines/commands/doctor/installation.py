"""Python and packages: what is installed, and whether it starts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.commands.doctor.finding import Finding, note, ok, one_line, problem

RAY_SECONDS = 60.0
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
        return problem(f"torch and torchvision do not go together ({one_line(error)}): {mend}")
    return ok(f"torch {torch.__version__} and torchvision {torchvision.__version__} go together")


def check_ray(
    workers: int | str = "auto", address: str | None = None, seconds: float = RAY_SECONDS, program: str = _RAY
) -> Finding:
    """A Ray instance starts (or the cluster at `address` answers) and runs a task, within `seconds`."""
    if workers == 0 and address is None:
        return ok("not used: machine.workers is 0")
    if address is None and (long := _too_long_for_sockets()):
        return problem(long)
    instead = "set machine.workers to 0 in params.yaml to extract without Ray"
    if address:
        instead = "start it, or set machine.ray_address to null in params.yaml to work without Ray"
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
        return problem(f"{what} failed ({one_line(reason)}): {instead}")
    return ok(f"{what} ran a task, {time.monotonic() - start:.0f} s")


def _too_long_for_sockets() -> str | None:
    """What is wrong with the temporary folder's name, if anything; without our packages nothing is known of it."""
    try:
        from diptych.features.errors import UserError
        from diptych.features.ray_sockets import check_room_for_sockets
    except ImportError:
        return None
    try:
        check_room_for_sockets()
    except UserError as error:
        return str(error)
    return None


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
