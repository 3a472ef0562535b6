"""Share what clones on one server compute: `python -m pipelines.commands.team_cache DIRECTORY` (docs/team-cache.md).

    DIRECTORY/dvc        DVC's cache: every output of every run
    DIRECTORY/features   the feature store: features by image content and detector, whatever DVC knows of them

Each clone runs it once. It changes this clone's own settings only, .dvc/config.local and the link .cache/features, so
that params.yaml and .dvc/config stay the team's. What the clone has made so far moves into the shared directory.
"""

from __future__ import annotations

import argparse
import errno
import getpass
import grp
import importlib.util
import json
import os
import pwd
import shutil
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_objects.fs.base import FileSystem

SHARED_MODE = 0o2775  # group-writable, and what is made inside belongs to the same group
REMOTE_NAME = "team"
# what DVC needs for a protocol of its remotes
REMOTE_PACKAGES = {"ssh": "dvc-ssh", "s3": "dvc-s3", "gs": "dvc-gs", "azure": "dvc-azure"}
STORE_LOCKS = "*/runs/lock"  # in the feature store: the only files there that are opened for writing again


class TeamCacheError(Exception):
    """Something the user can mend; the message names the folder or setting and the mend."""


def set_up(
    directory: Path, group: str | None = None, remote: str | None = None, clone: Path = Path()
) -> Iterator[str]:
    """Make `directory` shared, point `clone` to it, and yield a line for every step when it is done.

    group: the users' group, by default the one that `directory` has or gets. remote: a DVC remote besides, such as
    ssh://host/path or s3://bucket/folder, as this clone's default. Everything may be repeated; what is done already is left alone.
    Raises TeamCacheError or ParameterError.
    """
    clone = clone.resolve()
    directory = directory.expanduser().absolute()
    if directory.resolve().is_relative_to(clone):
        raise TeamCacheError(f"{directory} lies inside this clone: choose a folder that outlives it")
    if remote is not None:
        check_remote_url(remote)
    link = _feature_store(clone, directory)
    if group is not None:
        _group_id(group)
    repo = open_repository(clone)
    if busy := [command for command in running_commands(clone) if command.alive]:
        raise TeamCacheError(
            f"`{busy[0].text}` (process {busy[0].pid}) is at work in this clone: wait for it"
        )

    cache, features = directory / "dvc", directory / "features"
    for folder in (directory, cache, features):
        yield make_shared(folder, group)
    for parent in directory.resolve().parents:
        if not parent.stat().st_mode & 0o011:
            yield f"{parent} lets nobody but {owner_of(parent)} pass: others cannot reach {directory}"
    yield from _repair(directory)
    if not new_folders_are_shared(features, umask=0o077):
        yield (
            f"{directory}: this file system keeps no default permissions (ACLs), so what you make there is closed to "
            "others unless your umask is 002: every member adds `umask 002` to ~/.profile"
        )

    yield from _use_cache(repo, cache)
    yield from _use_feature_store(clone, link, features)
    if remote is not None:
        yield from _use_remote(repo, remote)


def make_shared(folder: Path, group: str | None) -> str:
    """Create `folder`, or give an existing one the group, SHARED_MODE and default permissions. Returns what was done."""
    try:
        folder.mkdir()
        done = "created"
    except FileExistsError:
        done = "there already"
    except FileNotFoundError:
        raise TeamCacheError(f"{folder.parent} does not exist: {_install(folder, group)}") from None
    except PermissionError:
        raise TeamCacheError(f"{folder.parent} is not writable for you: {_install(folder, group)}") from None
    if not folder.is_dir():
        raise TeamCacheError(f"{folder} is a file: choose another directory")

    state = folder.stat()
    if group is not None and state.st_gid != _group_id(group):
        try:
            os.chown(folder, -1, _group_id(group))
        except PermissionError:
            user = getpass.getuser()
            raise TeamCacheError(
                f"{folder} cannot be given to group {group}: `usermod -aG {group} {user}` by an administrator and a new "
                f"login, or `chgrp {group} {folder}` by {owner_of(folder)}"
            ) from None
        done = f"{done}, given to {group}"
    before = is_shared(folder)
    if state.st_uid == os.geteuid() or os.geteuid() == 0:
        share(folder)
        if not is_shared(folder):  # the system drops the setgid bit silently
            raise TeamCacheError(
                f"{folder} belongs to a group that you are not in: give one of yours with --group"
            )
        done = done if before else f"{done}, mode {SHARED_MODE:o}"
    elif not before:
        raise TeamCacheError(
            f"{folder} is closed to its group: `chmod {SHARED_MODE:o} {folder}` by {owner_of(folder)}"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        name = group_of(folder)
        raise TeamCacheError(
            f"{folder} is not writable for you: `usermod -aG {name} {getpass.getuser()}` by an administrator, and a new "
            "login"
        )
    return f"{folder}: {done} (group {group_of(folder)})"


def share(folder: Path) -> None:
    """Give an own folder SHARED_MODE, and, where the file system can, default permissions for what is made inside.

    Default permissions (a POSIX ACL) replace the umask of whoever makes something: programs that know nothing of
    sharing leave folders that the group can write to. Raises PermissionError for another user's folder.
    """
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | SHARED_MODE)
    owner, group, others = 0x01, 0x04, 0x20  # tags of linux/posix_acl.h; entries are (tag, rwx bits, no id)
    entries = ((owner, 0o7), (group, 0o7), (others, 0o5))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry, 0xFFFFFFFF) for entry in entries)
    if hasattr(os, "setxattr"):
        try:
            os.setxattr(folder, "system.posix_acl_default", acl)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise


def is_shared(folder: Path) -> bool:
    """Whether the group may write to `folder`, and what is made inside stays with the group."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o2070 == 0o2070


def new_folders_are_shared(folder: Path, umask: int | None = None) -> bool:
    """Try whether a folder made in `folder`, by a program that knows nothing of sharing, is writable for the group.

    umask: as if with this one, by default with that of this process. Changes the process's umask for a moment.
    """
    before = os.umask(0)
    os.umask(before if umask is None else umask)
    try:
        trial = folder / f".trial-{os.getpid()}"
        trial.mkdir()
        try:
            return is_shared(trial)
        finally:
            trial.rmdir()
    finally:
        os.umask(before)


def closed_in(root: Path) -> Iterator[Path]:
    """The folders below `root`, and the store's locks, that the group cannot write to as it must."""
    for parent, names, _ in os.walk(root.resolve()):
        for name in names:
            folder = Path(parent, name)
            if not folder.is_symlink() and not is_shared(folder):
                yield folder
    for lock in root.glob(STORE_LOCKS):
        if not lock.stat().st_mode & stat.S_IWGRP:
            yield lock


def working_links(cache: Path, clone: Path) -> list[str]:
    """Which of reflink, hardlink and symlink work from files in `cache` to names in `clone`: DVC's own code tries."""
    from dvc.fs import localfs
    from dvc_objects.fs.generic import test_links

    links = ["reflink", "hardlink", "symlink"]
    return test_links(links, localfs, str(cache), localfs, str(clone / "data"))  # makes links beside `data`


def best_cache_types(links: Sequence[str]) -> list[str]:
    """The value of `cache.type` that keeps one copy of a file on disk, from the links that work.

    DVC leaves a file that a stage wrote as a second copy when `reflink` or `copy` is in the list before a link that
    fits, whether reflinks work or not; so only what works is listed. After hard links come symbolic ones, for other
    users' files: Linux refuses hard links to files that one may not write to (fs.protected_hardlinks).
    """
    if "reflink" in links:
        return ["reflink", "copy"]
    types = [link for link in ("hardlink", "symlink") if link in links]
    return types if "symlink" in types else [*types, "copy"]


@dataclass(frozen=True)
class RunningCommand:
    """A DVC command that .dvc/tmp/rwlock names: its process id and text, and whether that process is alive.

    alive is None where another program has the process id by now, which DVC takes for the command.
    """

    pid: int
    text: str
    alive: bool | None


def running_commands(clone: Path) -> list[RunningCommand]:
    """The DVC commands that hold locks on files of `clone`. Raises TeamCacheError for a damaged lock file."""
    path = clone / ".dvc/tmp/rwlock"
    try:
        locks = json.loads(path.read_text(encoding="utf-8"))
        holders = [*locks.get("write", {}).values()]
        holders += [reader for readers in locks.get("read", {}).values() for reader in readers]
        found = {int(holder["pid"]): str(holder["cmd"]) for holder in holders}
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TeamCacheError(f"{path} is damaged: remove it when no dvc command runs in this clone") from None
    return [RunningCommand(pid, text, _runs_dvc(pid)) for pid, text in found.items()]


def _runs_dvc(pid: int) -> bool | None:
    import psutil

    try:
        return True if any("dvc" in Path(word).name for word in psutil.Process(pid).cmdline()) else None
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # some other user's
        return True


def open_repository(clone: Path) -> Repo:
    """The DVC repository in `clone`. Raises TeamCacheError where there is none, or its configuration is wrong."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        return Repo(str(clone))
    except NotDvcRepoError:
        raise TeamCacheError(f"{clone} is no clone of the pipeline: run this where dvc.yaml is") from None
    except (DvcException, SCMError) as error:
        raise TeamCacheError(f"{clone}: {_one_line(error)}") from None


def check_remote_url(url: str) -> None:
    """Raise TeamCacheError where DVC could not use `url` as a remote."""
    package = REMOTE_PACKAGES.get(url.partition("://")[0])
    if package is not None:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise TeamCacheError(
                f"{url}: DVC needs a package for it: pip install --constraint constraints.txt {package}"
            )
    elif "://" not in url and not Path(url).is_absolute():
        raise TeamCacheError(
            f"{url} is no remote: give ssh://host/path, s3://bucket/folder or another URL that DVC knows"
        )


def owner_of(path: Path) -> str:
    """The name of the user who owns `path`, or the number."""
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except KeyError:
        return str(path.stat().st_uid)


def group_of(path: Path) -> str:
    """The name of the group of `path`, or the number."""
    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except KeyError:
        return str(path.stat().st_gid)


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise TeamCacheError(
            f"there is no group {name}: `groupadd {name}` by an administrator, or choose from: {' '.join(_own_groups())}"
        ) from None


def _own_groups() -> list[str]:
    ids = {os.getgid(), *os.getgroups()}
    return sorted(entry.gr_name for entry in grp.getgrall() if entry.gr_gid in ids)


def _install(folder: Path, group: str | None) -> str:
    return f"`install -d -m {SHARED_MODE:o} -g {group or 'GROUP'} {folder}` by an administrator makes it"


def _feature_store(clone: Path, directory: Path) -> Path | None:
    """The path in this clone to link to the shared store; None where machine.feature_store names the shared one."""
    from pipelines.runner.params import Machine, read_params, read_section

    params = clone / "params.yaml"
    store = Path(read_section(Machine, "machine", read_params(params), params).feature_store)
    if store == directory / "features":
        return None
    if store.is_absolute() or ".." in store.parts:
        raise TeamCacheError(
            f"{params}: machine.feature_store is {store}: set it to .cache/features, which this command links to "
            f"{directory / 'features'}"
        )
    return clone / store


def _repair(directory: Path) -> Iterator[str]:
    """Open what members made there before the directory was shared: each can do that for what is his own."""
    closed = list(closed_in(directory / "dvc")) + list(closed_in(directory / "features"))
    own = [path for path in closed if os.geteuid() in (0, path.stat().st_uid)]
    for path in own:
        if path.is_dir():
            share(path)
        else:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o664)
    if own:
        yield f"{directory}: opened {len(own)} older folders and files of yours to the group"
    if others := sorted({owner_of(path) for path in closed} - {owner_of(path) for path in own}):
        yield f"{directory}: more is closed to the group; it opens when this command is run by: {', '.join(others)}"


def _use_cache(repo: Repo, cache: Path) -> Iterator[str]:
    """Point the clone's DVC to the shared cache; an own cache in .dvc/cache moves there."""
    clone = Path(repo.root_dir)
    own = clone / ".dvc/cache"
    before = Path(repo.cache.legacy.path)
    links = working_links(cache, clone)
    wanted = {"dir": str(cache), "shared": "group", "type": best_cache_types(links)}
    with repo.config.edit("local") as config:
        section = config.setdefault("cache", {})
        changed = any(section.get(key) != value for key, value in wanted.items())
        section.update(wanted)
    yield (
        f".dvc/config.local: cache.dir {cache}, cache.shared group, cache.type {','.join(wanted['type'])}"
        f"{'' if changed else ' (as before)'}; here work: {', '.join([*links, 'copy'])}"
    )
    if before not in (cache, own) and before.exists():
        yield f"{before} was this clone's cache until now and keeps what it holds"
    if own.is_dir() and not own.is_symlink():
        yield f".dvc/cache: {_move_into(own, cache)} files moved to {cache}"
        if any((clone / name).exists() for name in ("data", "models")):
            yield "`dvc checkout --relink` turns copies in this clone into links to the shared cache"


def _use_feature_store(clone: Path, link: Path | None, features: Path) -> Iterator[str]:
    """Make the clone's feature store a link to the shared one; features that it has already move there."""
    if link is None:
        yield f"params.yaml: machine.feature_store is {features} already"
        return
    name = link.relative_to(clone)
    if link.is_symlink():
        before = link.readlink()
        if before == features:
            yield f"{name} -> {features} (as before)"
            return
        if link.exists():
            yield f"{name} was a link to {before}, which keeps what it holds"
        link.unlink()
    elif link.is_dir():
        yield f"{name}: {_move_into(link, features)} files moved to {features}"
    elif link.exists():
        raise TeamCacheError(f"{link} is a file where the feature store should be: remove it")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(features)
    yield f"{name} -> {features}"


def _use_remote(repo: Repo, url: str) -> Iterator[str]:
    """Make `url` the clone's default remote, and try to reach it."""
    with repo.config.edit("local") as config:
        config.setdefault("remote", {}).setdefault(REMOTE_NAME, {})["url"] = url
        config.setdefault("core", {})["remote"] = REMOTE_NAME
    yield f".dvc/config.local: remote {REMOTE_NAME} {url}, the default of dvc push and dvc pull"
    remote = repo.cloud.get_remote(REMOTE_NAME)
    try:
        remote.fs.makedirs(remote.path, exist_ok=True)
        _list(remote.fs, remote.path)
    except Exception as error:  # noqa: BLE001  (whatever the protocol's library raises: names, keys, routes, rights)
        address = "/".join(url.split("/")[:3])  # ssh://host, without the path
        test = (
            f"`ssh {address} true` says more"
            if url.startswith("ssh://")
            else "check address, keys and rights"
        )
        raise TeamCacheError(f"{url} cannot be used yet ({_one_line(error)}): {test}") from None
    yield f"{url}: reached"


def _list(system: FileSystem, path: str) -> None:
    """Ask what is in a folder: in object storage, which has none, to make one asks nobody. Raises what the protocol's library does."""
    from diptych.features.addresses import is_missing

    try:
        system.ls(path, detail=False)
    except FileNotFoundError as error:  # nothing yet; that there is no bucket is another matter
        if not is_missing(error, path):
            raise


def _move_into(source: Path, target: Path) -> int:
    """Move all files below `source` to the same places below `target`; what is there already stays. Returns how many.

    Names in both say what the content is (DVC's hashes, the store's unique parts), so equal names are equal files.
    Everybody may read what was moved, and the group may write what its owner could. `source` is gone at the end; after
    an interrupt it is half-moved, and moving again goes on.
    """
    from dvc_objects.fs.utils import makedirs

    from diptych.features.files import atomic_path

    moved = 0
    for parent, _, names in os.walk(source, topdown=False):
        folder = target / Path(parent).relative_to(source)
        for name in names:
            file, destination = Path(parent, name), folder / name
            if not destination.exists():
                makedirs(str(folder), exist_ok=True, mode=SHARED_MODE)
                try:
                    file.rename(destination)
                except OSError as error:
                    if error.errno != errno.EXDEV:  # another file system
                        raise
                    with atomic_path(destination) as temporary:
                        shutil.copyfile(file, temporary)
                    shutil.copystat(file, destination)  # DVC takes the newest of several runs
                mode = stat.S_IMODE(destination.stat().st_mode)
                destination.chmod(mode | 0o444 | (mode & 0o200) >> 3)
                moved += 1
            file.unlink(missing_ok=True)
        Path(parent).rmdir()
    return moved


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: prints a line for every step; one line on stderr and status 1 where something must be mended."""
    from pipelines.runner.params import ParameterError

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.team_cache", description="Share a cache with other clones."
    )
    parser.add_argument(
        "directory", type=Path, metavar="DIRECTORY", help="made if missing; the same for all clones"
    )
    parser.add_argument("--group", help="the users' group (default: the directory's)")
    parser.add_argument(
        "--remote",
        metavar="URL",
        help="also a DVC remote, for example ssh://host/srv/diptych or s3://bucket/diptych",
    )
    options = parser.parse_args(arguments)
    try:
        for line in set_up(options.directory, options.group, options.remote):
            print(line, flush=True)
    except (TeamCacheError, ParameterError) as error:
        sys.exit(_one_line(error))
    except OSError as error:
        sys.exit(f"{error.filename or options.directory}: {error.strerror or _one_line(error)}")


if __name__ == "__main__":
    main()
