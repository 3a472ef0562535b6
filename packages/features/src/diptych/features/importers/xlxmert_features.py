"""X-LXMERT's released grid features, as a feature store of ours.

They are HDF5 files (`maskrcnn_train_grid8.h5`, `maskrcnn_valid_grid8.h5`, ...) with a group for each image, named like
its file without the ending (`COCO_val2014_000000000042`), that holds one dataset, `features`: float32 [8, 8, 2048],
rows from the top, columns from the left.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from diptych.features.datasets.keys import COCO_NAME
from diptych.features.errors import UserError
from diptych.features.extraction.claims import Claims
from diptych.features.file_facts import FileFacts
from diptych.features.files import atomic_path
from diptych.features.grid import CELLS, GRID
from diptych.features.store import FeatureStore, cut_into_parts, write_failures

if TYPE_CHECKING:
    import h5py

SOURCE = "X-LXMERT release"
UNUSED = pa.schema([("file", pa.string()), ("image_id", pa.string())])
_WAIT_SECONDS = 0.5  # between two looks at what other runs work on
_FLOAT16_ENDS = 65_520  # what is at least this large rounds to infinity, what is below to 65504 at most


@dataclass(frozen=True)
class _Place:
    """Where the features of an image are."""

    file: Path
    group: str


def import_features(
    table: pa.Table,
    files: Sequence[Path],
    store_root: Path,
    out: Path,
    part_size: int,
    max_failed_share: float,
    facts_file: Path | None = None,
) -> dict[str, int]:
    """Bring the features of a manifest's images from `files` into the store, as float16, and link them into `out`.

    An image is found by the name of its file or by its id; COCO's twelve digits suffice, so that pictures of the
    2017 edition find the features of 2014. Rows are stored part by part under the manifest's sha256, as extraction
    stores them; a run after a kill reads what is not stored yet. The store's key holds the sha256 of `files`
    (facts_file keeps those, so that 64 GB are hashed once; see FileFacts).

    Images that the dataset stage could not read, that have no features, or whose features are not finite numbers that
    float16 can hold, are left out and listed in `out`/failures.parquet (kinds: not_an_image, no_features, not_finite,
    overflow); features of images that the manifest does not have are listed in `out`/unused.parquet. Returns counts: images, imported (by this run), reused, failed (and
    failed.<kind>), unused.

    Raises UserError for a file that is missing, damaged or of another layout, an id that is in two files, and as
    soon as more than `max_failed_share` of the images fail; it names a table of those that failed so far.
    """
    rows = table.select(["image_id", "sha256", "path", "width"]).to_pylist()
    with ExitStack() as stack:
        opened = {Path(file): stack.enter_context(_open(Path(file))) for file in files}
        release = _Names(opened)
        # The same picture under several ids is one row of the store: any of them may have its features.
        places: dict[str, _Place] = {}
        used: set[_Place] = set()
        for row in rows:
            if place := release.find(row):
                used.add(place)
                if row["width"]:
                    places.setdefault(row["sha256"], place)
        if not used:
            raise UserError(
                f"{', '.join(map(str, files))}: {len(release)} images, none of which is in the manifest (the first "
                f"here is {release.first}, there {rows[0]['image_id']}); give the files of the same dataset"
            )
        failures = _Failures(rows, max_failed_share, Path(store_root) / "xlxmert-failures.parquet")
        for row in rows:
            if row["sha256"] in places or row["sha256"] in failures.by_sha256:
                continue
            if row["width"]:
                message = f"no file has features of {Path(row['path']).stem} or {row['image_id']}"
                failures.add(row["sha256"], "no_features", message)
            else:  # damaged files may all be alike, and stages to come need the picture
                failures.add(row["sha256"], "not_an_image", f"{row['path']}: the picture cannot be read")
        failures.check()

        first = next(iter(places.values() or used))
        feature_dim = _dataset(opened[first.file], first).shape[2]
        meta = {
            "source": SOURCE,
            "files": sorted(_sha256s(opened, facts_file)),
            "grid": GRID,
            "feature_dim": feature_dim,
        }
        store = FeatureStore(store_root, meta)
        with Claims(store.folder / "runs") as claims:
            store.remove_leftovers()
            imported = _import(rows, places, opened, store, claims, failures, part_size)
    good = [(row["image_id"], row["sha256"]) for row in rows if row["sha256"] not in failures.by_sha256]
    store.link_into(out, good, part_size)
    write_failures(failures.rows(), out / "failures.parquet")
    unused = [place for place in release.places() if place not in used]
    with atomic_path(out / "unused.parquet") as temporary:
        listed = [{"file": place.file.name, "image_id": place.group} for place in unused]
        pq.write_table(pa.Table.from_pylist(listed, schema=UNUSED), temporary)
    return {
        "images": len(rows),
        "imported": imported,
        "reused": len(good) - imported,
        "failed": len(rows) - len(good),
        **{f"failed.{kind}": count for kind, count in failures.kinds().items()},
        "unused": len(unused),
    }


def _import(
    rows: Sequence[Mapping[str, Any]],
    places: Mapping[str, _Place],
    opened: Mapping[Path, h5py.File],
    store: FeatureStore,
    claims: Claims,
    failures: _Failures,
    part_size: int,
) -> int:
    """Store what the store does not know, in the manifest's order; returns how many images that were.

    Images that another living run has claimed are left to it, and come back only if it dies.
    """
    ids: dict[str, str] = {}
    for row in rows:
        if row["sha256"] in places:
            ids.setdefault(row["sha256"], row["image_id"])
    known = store.known()
    wanted = [sha256 for sha256 in ids if sha256 not in known]
    parts = cut_into_parts(wanted, part_size)
    # Used again for every image and every part: fresh memory costs more than what is done with it.
    values = np.empty((GRID, GRID, store.meta["feature_dim"]), np.float32)
    features = np.empty((max((len(wanted[part]) for part in parts), default=0), *values.shape), np.float16)
    imported = 0
    with tqdm(
        total=len(ids), initial=len(ids) - len(wanted), unit="image", desc="import", mininterval=1
    ) as bar:
        waiting = deque(wanted[part] for part in parts)
        while waiting:
            part = waiting.popleft()
            mine, others = claims.take(part, store.known)
            if others:
                waiting.append(others)
                if not mine:
                    time.sleep(_WAIT_SECONDS)
            good: list[str] = []
            for sha256 in mine:
                place = places[sha256]
                _read(opened[place.file], place, values)
                largest = max(float(values.max()), -float(values.min()))  # NaN if any is
                if not math.isfinite(largest):
                    failures.add(sha256, "not_finite", f"{place.file}: {place.group} holds NaN or infinity")
                elif largest >= _FLOAT16_ENDS:
                    message = f"{place.file}: {place.group} holds {largest:g}, float16 ends at 65504"
                    failures.add(sha256, "overflow", message)
                else:
                    torch.from_numpy(features[len(good)]).copy_(torch.from_numpy(values))
                    good.append(sha256)
            failures.check()
            if good:
                store.append(
                    [ids[s] for s in good], good, features[: len(good)].reshape(len(good), CELLS, -1)
                )
            claims.release(mine)
            imported += len(good)
            bar.update(len(part) - len(others))
    return imported


class _Names:
    """Finds the features of a manifest's row among the groups of the files."""

    def __init__(self, opened: Mapping[Path, h5py.File]) -> None:
        self._places: dict[str, _Place] = {}
        self._by_digits: dict[str, _Place] = {}
        for file, content in opened.items():
            for group in content:
                if group in self._places:
                    raise UserError(
                        f"{self._places[group].file} and {file}: both have features of {group}; give one"
                    )
                self._places[group] = place = _Place(file, group)
                if match := COCO_NAME.fullmatch(group):
                    self._by_digits[match[1]] = place
        self.first = next(iter(self._places), "no image")

    def __len__(self) -> int:
        return len(self._places)

    def places(self) -> Iterator[_Place]:
        """Of all images, file by file."""
        return iter(self._places.values())

    def find(self, row: Mapping[str, Any]) -> _Place | None:
        """Where the features of an image are, None if nowhere."""
        stem, image_id = Path(row["path"]).stem, row["image_id"]
        return self._places.get(stem) or self._places.get(image_id) or self._by_digits.get(image_id)


class _Failures:
    """Images that are left out, by sha256; more than a share of all rows is an error that says where their list is."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], share: float, listed_in: Path) -> None:
        self._rows, self._share, self._listed_in = rows, share, listed_in
        self._copies = Counter(row["sha256"] for row in rows)
        self.by_sha256: dict[str, dict[str, str]] = {}
        self._count = 0

    def add(self, sha256: str, kind: str, message: str) -> None:
        self.by_sha256[sha256] = {"sha256": sha256, "kind": kind, "message": message}
        self._count += self._copies[sha256]

    def rows(self) -> list[dict[str, str]]:
        """A row for every image that failed, copies of a file included, in the manifest's order."""
        return [
            {**self.by_sha256[row["sha256"]], "image_id": row["image_id"], "path": row["path"]}
            for row in self._rows
            if row["sha256"] in self.by_sha256
        ]

    def kinds(self) -> dict[str, int]:
        return dict(Counter(row["kind"] for row in self.rows()).most_common())

    def check(self) -> None:
        """Raise UserError if too many have failed by now; nothing long goes on in vain."""
        if self._count <= self._share * len(self._rows):
            return
        rows = self.rows()
        write_failures(rows, self._listed_in)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
        raise UserError(
            f"import: {self._count} of {len(self._rows)} images failed so far ({kinds}), more than "
            f"extract.max_failed_share = {self._share}; the first is {rows[0]['image_id']} ({rows[0]['message']}), all "
            f"are in {self._listed_in}. Give the files that lack or raise the share; what was imported is kept"
        )


@contextmanager
def _open(file: Path) -> Iterator[h5py.File]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{file}: reading it needs h5py: pip install 'diptych-features[xlxmert]'") from error
    if not file.is_file():
        raise UserError(f"{file}: no such file of features; set extract.source or download it")
    try:
        content = h5py.File(file, "r", locking="best-effort")  # shared folders often know no locks
    except OSError as error:
        raise UserError(f"{file}: not a whole HDF5 file ({error}); download it again") from error
    with content:
        yield content


def _dataset(content: h5py.File, place: _Place) -> h5py.Dataset:
    """The features of an image, unread: floating-point [8, 8, D]. UserError where they are not that."""
    import h5py

    group = content[place.group]
    dataset = group.get("features") if isinstance(group, h5py.Group) else None
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{place.file}: {place.group}/features is not there; give files as X-LXMERT released them, *_grid8.h5"
        )
    numbers = np.issubdtype(dataset.dtype, np.floating)
    if not numbers or dataset.ndim != 3 or dataset.shape[:2] != (GRID, GRID) or not dataset.shape[2]:
        raise UserError(
            f"{place.file}: {place.group}/features is {dataset.dtype} {list(dataset.shape)} instead of float "
            f"[{GRID}, {GRID}, D]; grid features are in *_grid8.h5, those of boxes are of no use here"
        )
    return dataset


def _read(content: h5py.File, place: _Place, out: np.ndarray) -> None:
    """The features of an image into float32 [8, 8, D]."""
    try:
        dataset = _dataset(content, place)
        if dataset.shape != out.shape:
            raise UserError(
                f"{place.file}: {place.group}/features is {dataset.dtype} {list(dataset.shape)}, those of other images "
                f"are {list(out.shape)}; give files of one detector"
            )
        dataset.read_direct(out)
    except (KeyError, OSError, RuntimeError) as error:
        raise UserError(
            f"{place.file}: {place.group} cannot be read ({error}); the file is damaged: download it again"
        ) from error


def _sha256s(files: Iterable[Path], facts_file: Path | None) -> Iterator[str]:
    """sha256 of each file, hashed only where it is not known from before."""
    with FileFacts(facts_file) as known:
        for file in files:
            status = os.stat(file)
            facts = known.get(file, status)
            if facts is None:
                facts = {"sha256": _hash(file, status.st_size)}
                known.add(file, status, facts)
            yield facts["sha256"]


def _hash(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with (
        open(file, "rb") as content,
        tqdm(total=size, desc=f"sha256 of {file.name}", unit="B", unit_scale=True, mininterval=1) as bar,
    ):
        while block := content.read(1 << 24):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
