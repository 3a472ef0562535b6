"""A container's share of the processor, as control groups of both versions say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.features import processor
from diptych.features.processor import cpu_quota, usable_cores

V2 = "0::{group}\n"
V2_MOUNT = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "4:memory:/elsewhere\n3:cpuset:/\n2:cpu,cpuacct:{group}\n1:name=systemd:/a:b\n0::/init.scope\n"
V1_MOUNT = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    "34 31 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def machine(root: Path, cgroup: str, mounts: str, group: str, top: str = "/") -> Path:
    """`root` with the process's groups and mounts as the kernel lists them."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup.format(group=group))
    (root / "proc/self/mountinfo").write_text(mounts.format(top=top))
    return root


def limit(root: Path, version: int, group: str, quota: str, period: str = "100000") -> None:
    folder = root / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/cpu") / group
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


def made(root: Path, version: int, group: str, top: str = "/") -> Path:
    return machine(root, *((V2, V2_MOUNT) if version == 2 else (V1, V1_MOUNT)), group, top)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "seen_cores", lambda: 4)


@pytest.mark.parametrize(
    ("quota", "cores", "usable"),
    [("50000", 0.5, 1), ("150000", 1.5, 1), ("200000", 2.0, 2), ("900000", 9.0, 4), ("1000", 0.01, 1)],
)
def test_a_quota_is_counted(
    tmp_path: Path, version: int, four_cores: None, quota: str, cores: float, usable: int
) -> None:
    root = made(tmp_path, version, "/")
    limit(root, version, ".", quota)
    assert cpu_quota(root) == cores and usable_cores(root) == usable


def test_without_a_limit_all_cores_count(tmp_path: Path, version: int, four_cores: None) -> None:
    root = made(tmp_path, version, "/")
    limit(root, version, ".", "max" if version == 2 else "-1")
    assert cpu_quota(root) is None and usable_cores(root) == 4


def test_the_least_limit_of_the_groups_above_counts(tmp_path: Path, version: int) -> None:
    """A pod's limit binds a container in it, and a slice's a service."""
    root = made(tmp_path, version, "/pod/container")
    limit(root, version, "pod", "100000", "200000")
    limit(root, version, "pod/container", "300000")
    limit(root, version, "neighbour", "1000")
    assert cpu_quota(root) == 0.5
    limit(root, version, "pod/container", "20000")
    assert cpu_quota(root) == 0.2


@pytest.mark.parametrize("top", ["/docker/1f", "/../../docker/1f", "/docker/1"])
def test_a_container_that_sees_its_own_group_only(tmp_path: Path, version: int, top: str) -> None:
    """Without a namespace the group has its name of outside, and the mount begins there; docker's version 1 does so."""
    root = made(tmp_path, version, "/docker/1f", top)
    limit(root, version, ".", "50000")
    assert cpu_quota(root) == 0.5


def test_a_group_outside_of_what_is_seen(tmp_path: Path, version: int) -> None:
    root = made(tmp_path, version, "/../other")
    limit(root, version, ".", "50000")
    assert cpu_quota(root) == 0.5


def test_a_mount_with_a_blank_in_its_name(tmp_path: Path) -> None:
    mount = "30 23 0:26 / /sys/fs/control\\040groups rw - cgroup2 cgroup2 rw\n"
    root = machine(tmp_path, V2, mount, "/a")
    (root / "sys/fs/control groups/a").mkdir(parents=True)
    (root / "sys/fs/control groups/a/cpu.max").write_text("50000 100000\n")
    assert cpu_quota(root) == 0.5


@pytest.mark.parametrize("content", ["", "many 100000", "50000", "50000 0"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, content: str) -> None:
    root = machine(tmp_path, V2, V2_MOUNT, "/")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(content)
    assert cpu_quota(root) is None
    assert cpu_quota(root / "no/linux") is None


def test_this_machine() -> None:
    assert usable_cores() >= 1 and (cpu_quota() is None or cpu_quota() > 0)


def test_a_mount_without_a_source(tmp_path: Path, version: int, four_cores: None) -> None:
    root = made(tmp_path, version, "/user")
    mounts = root / "proc/self/mountinfo"
    mounts.write_text("29 23 0:25 / /mnt rw - tmpfs  rw,size=64k\n" + mounts.read_text())
    limit(root, version, "user", "200000")
    assert cpu_quota(root) == 2.0
