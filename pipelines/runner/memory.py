"""How much memory this process has, and how much it may take: the machine's, and of it what a container allows."""

from __future__ import annotations

import re
from pathlib import Path

from diptych.features.processor import ROOT, control_groups

GIB = 2**30
# where a control group says its limit, what is used of it, and of that what files read before take, which are given back
# when memory is wanted (Linux's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst)
_VERSIONS = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}


def memory(root: Path = ROOT) -> tuple[float, float]:
    """Total and available memory in GiB, of this process's control groups where one of them has less than the machine.

    root: where `proc` and the mounts of control groups are, another one in tests.
    """
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for group in control_groups("memory", root):
        if limited := _memory_of(group):
            total, available = min(total, limited[0]), min(available, limited[1])
    return total / GIB, available / GIB


def _memory_of(group: Path) -> tuple[int, int] | None:
    """The limit of one control group and what is left of it, in bytes; None where it has none."""
    for limit_file, (used_file, files_read) in _VERSIONS.items():
        try:
            limit = int((group / limit_file).read_text())
            used = int((group / used_file).read_text())
            cached = re.search(rf"^{files_read} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such file here, or "max"
            continue
        return limit, max(0, limit - used + (int(cached[1]) if cached else 0))
    return None


def resident() -> int | None:
    """Bytes of memory that the process has now, where `/proc` says it."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """The most that it ever had, not what the process had that started it: `ru_maxrss` remembers that one's."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
