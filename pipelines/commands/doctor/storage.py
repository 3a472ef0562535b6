"""Where data lie: links, shared folders, the remote, room on the disks."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.commands.doctor.finding import Finding, note, ok, problem, together

COCO_IMAGES = 123_287  # of train2014 and val2014 together
CELLS = 64
GIB = 2**30
# What is neither features nor shards. Toybox: networks. Photographs: two transformers, a checkpoint and the other networks (5 GiB),
# and the paintings of the test sets as PNG beside the real pictures (11)
REST, REST_OF_PHOTOGRAPHS = 0.1 * GIB, 16 * GIB
# a JPEG of COCO's, in the mean: the shards hold the pictures, too
PHOTOGRAPH = 154_000


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
    places: Mapping[str, tuple[Path, float, float]], free: Callable[[Path], int] | None = None
) -> Finding:
    """Each file system has room for what the profile may still have to write on it.

    places: what -> (folder, bytes at least, bytes at most); those of one file system are added up.
    """
    free = free or (lambda path: shutil.disk_usage(path).free)
    needs: dict[int, tuple[Path, float, float]] = {}
    for folder, least, most in places.values():
        while not folder.exists():
            folder = folder.parent
        first, least_before, most_before = needs.get(folder.stat().st_dev, (folder, 0.0, 0.0))
        needs[folder.stat().st_dev] = first, least_before + least, most_before + most
    findings = []
    for folder, least, most in needs.values():
        room = free(folder)
        said = f"{folder}: up to {spelled_size(most)} to be written, {spelled_size(room)} free"
        if room < least:
            findings.append(problem(f"{said}: make room, or share a cache (docs/team-cache.md)"))
        elif room < most:
            findings.append(note(f"{said}: make room, unless what lies there is of these parameters"))
        else:
            findings.append(ok(said))
    return together(findings)


def space_needed(
    params: Mapping[str, Any], clone: Path, cache: Path, store: Path, linked: bool
) -> dict[str, tuple[Path, float, float]]:
    """Where a run of `params` writes how many bytes, for check_space: at least, if all that lies there already is this run's,
    and at most, if nothing is, but of other parameters, pictures or detectors.

    Features dominate: 64 cells x D x 2 bytes an image, once in the store, once as DVC's output (none where that is
    linked from the store), once more in the shards, beside the pictures. linked: DVC links from its cache; else the clone holds
    copies.
    """
    images, toybox = image_count(params, clone), bool(params.get("dataset", {}).get("toybox"))
    features = float(images * CELLS * feature_dim(params) * 2)
    shards = features + (0 if toybox else images * PHOTOGRAPH)
    rest = REST if toybox else REST_OF_PHOTOGRAPHS
    near_store, near_cache = _device(clone) == _device(store), _device(clone) == _device(cache)
    cached = shards + rest + (0 if linked and near_store and near_cache else features)
    copies = shards + rest + (0 if near_store else features)
    moved = 0 if near_cache else shards  # one folder at a time, until DVC has moved it to its cache
    in_clone = moved if linked else copies
    return {
        "feature store": (store, max(0.0, features - used_bytes(store)), features),
        "DVC's cache": (cache, max(0.0, cached - used_bytes(cache)), cached),
        "this clone": (clone, max(0.0, in_clone - used_bytes(clone / "data")), in_clone),
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


def _device(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def used_bytes(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for parent, _, names in os.walk(path.resolve()):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def spelled_size(count: float) -> str:
    """A number of bytes as a reader takes it in: in GB or MB of 1000 each."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
