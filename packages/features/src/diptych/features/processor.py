"""How much of the processor this process may take: the cores it may run on, and a container's share of their time.

A container with half a core's time still sees all cores of its machine, and torch, Ray and `os.cpu_count` start as many
threads: each of them is stopped for most of every tenth of a second, and those that wait for it with it.

The packages features and eval do not know each other and both start threads, so that each has this file; a test keeps the
two equal to the letter. It imports nothing of either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Threads that this process can keep busy: `seen_cores` within `cpu_quota`, of which whole ones count, at least 1."""
    cores, quota = seen_cores(), cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def fit_torch_threads() -> None:
    """Take no more of torch's threads than `usable_cores`, which torch does not look at, unless OMP_NUM_THREADS says how
    many."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def seen_cores() -> int:
    """Cores this process may run on, whatever time it gets there (`taskset` and cpusets may allow fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the control groups of this process allow, the least of them; None without a limit.

    Version 2 says so in `cpu.max`, version 1 in `cpu.cfs_quota_us` and `cpu.cfs_period_us` (Linux's
    admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst); both may be mounted. What cannot be read limits nothing.

    root: where `proc` and the mounts are, another one in tests.
    """
    found = [quota for group in control_groups("cpu", root) if (quota := _quota_of(group)) is not None]
    return min(found, default=None)


def _quota_of(group: Path) -> float | None:
    """The limit of one control group."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file here, or "max"
        return None
    return cores if cores > 0 else None  # version 1 says -1 where there is no limit


def control_groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Folders of this process's control groups that may hold limits of `controller`, such as "cpu", in both versions: from
    its own up to the highest that is mounted here. None where there are no control groups.

    root: as in `cpu_quota`.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return
    paths = {}
    for line in memberships:  # 4:cpu,cpuacct:/docker/1f, or 0::/docker/1f
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    for line in mounts:  # 31 23 0:28 /docker/1f /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
        before, _, after = line.partition(" - ")
        top, place = (_unescaped(field) for field in before.split()[3:5])
        # the source between them may be empty
        kind, options = after.partition(" ")[0], after.rpartition(" ")[2]
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        mount = root / place.lstrip("/")
        # inside a container the mount may begin at its own group, or lie outside of what it sees (`/../..`)
        above = f"{top.rstrip('/')}/"
        inside = paths[kind].removeprefix(above) if f"{paths[kind]}/".startswith(above) else ""
        names = [name for name in inside.split("/") if name]
        for count in range(0 if ".." in names else len(names), -1, -1):
            yield mount.joinpath(*names[:count])


def _unescaped(field: str) -> str:
    """A path of mountinfo, which writes blanks as `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)
