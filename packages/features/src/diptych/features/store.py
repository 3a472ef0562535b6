"""The feature store: what a network makes of images, keyed by everything that determines it, shared and never rewritten.

A store lives beside DVC (`<root>/<key>/`): `_meta.json` says what made its rows, `part-*.parquet` hold
`image_id, sha256, features` where features is a fixed-size binary of little-endian float16 [64, D], row-major
from the top left, or [k, D] of regions; or, made by an image tokenizer, `image_id, sha256, codes`, uint16 [cells]. Rows are found by the
sha256 of the image file: renamed images, duplicates and overlapping datasets are never extracted twice. Another
detector or image tokenizer is another key. Images that failed are remembered beside the parts, in
`failures-*.parquet`.

When a dataset is complete, its ordinary folder is linked from the store; that folder depends on dataset and
detector only, not on how many runs or workers made the parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diptych.features.errors import UserError
from diptych.features.files import atomic_path
from diptych.features.grid import CELLS

FEATURE_VERSION = 1
FAILURES = pa.schema([(name, pa.string()) for name in ("image_id", "path", "sha256", "kind", "message")])
_ROW_GROUP = 50
_LEFTOVER_SECONDS = 24 * 60 * 60
_ONE_PAGE = 2**30  # bytes: more than any row group, so that a row group's features are one run of bytes


@dataclass(frozen=True)
class Values:
    """What a part holds of each image: the name of its column, and the little-endian numpy dtype and shape of its values."""

    column: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of an image."""
        return self.count * np.dtype(self.dtype).itemsize

    @property
    def count(self) -> int:
        """Numbers of an image."""
        return int(np.prod(self.shape))

    @property
    def schema(self) -> pa.Schema:
        """Columns of a part."""
        return pa.schema(
            [
                pa.field("image_id", pa.string(), nullable=False),
                pa.field("sha256", pa.string(), nullable=False),
                pa.field(self.column, pa.binary(self.width), nullable=False),
            ]
        )


def grid_values(feature_dim: int) -> Values:
    """Grid features, float16 [64, D]."""
    return region_values(CELLS, feature_dim)


def region_values(regions: int, feature_dim: int) -> Values:
    """Features of a detector's regions, float16 [k, D]."""
    return Values("features", "<f2", (regions, feature_dim))


def code_values(cells: int) -> Values:
    """Codes, uint16 [cells]."""
    return Values("codes", "<u2", (cells,))


def values_of(meta: Mapping[str, Any]) -> Values:
    """What the store of a `_meta.json` holds: codes where it names `cells`, else features of `feature_dim` numbers, of the grid or
    of `regions`."""
    if "cells" in meta:
        return code_values(meta["cells"])
    if "regions" in meta:
        return region_values(meta["regions"], meta["feature_dim"])
    return grid_values(meta["feature_dim"])


def cut_into_parts(sha256s: Sequence[str], part_size: int) -> list[slice]:
    """Where the parts of a dataset end: after images whose sha256 says so, about `part_size` images apart.

    Cut by content, a few images more or fewer change the parts that they are in and leave all others as they
    were, to be linked and not copied. A part has at least a quarter of `part_size` images (the last one may have
    fewer) and at most twice as many as `part_size`.
    """
    parts, start = [], 0
    for end, sha256 in enumerate(sha256s, start=1):
        length = end - start
        ends_here = zlib.crc32(sha256.encode()) % part_size == 0 and length >= part_size / 4
        if ends_here or length == 2 * part_size:
            parts.append(slice(start, end))
            start = end
    if start < len(sha256s):
        parts.append(slice(start, len(sha256s)))
    return parts


class FeatureStore:
    """The parts of one key. `meta` is a JSON-able mapping that names everything that determines a row;
    it must hold `feature_dim`, or `cells` where the rows are codes. Raises UserError where the store is a link to a disk that is
    not there."""

    def __init__(self, root: Path, meta: Mapping[str, Any]) -> None:
        self.meta = {"feature_version": FEATURE_VERSION, **meta}
        canonical = json.dumps(self.meta, sort_keys=True, separators=(",", ":"))
        self.folder = Path(root) / hashlib.sha256(canonical.encode()).hexdigest()[:32]
        self.values = values_of(self.meta)
        self._places: dict[str, tuple[Path, int]] = {}
        self._seen: set[Path] = set()
        if not (self.folder / "_meta.json").exists():
            try:
                self.folder.mkdir(parents=True)
                shutil.copymode(root, self.folder)  # a shared store is its group's, whatever the umask
            except FileExistsError:  # of another run, or a link to what is not there stands in the way
                if not self.folder.is_dir():
                    raise _not_mounted(self.folder) from None
            with atomic_path(self.folder / "_meta.json") as path:
                path.write_text(json.dumps(self.meta, indent=2, sort_keys=True) + "\n")

    def known(self) -> Mapping[str, tuple[Path, int]]:
        """Where each image is: sha256 -> (part, row). Reads the sha256 column of the parts that came since last time.

        Parts that a crash of the machine left unreadable are set aside as `*.damaged` and extracted anew.
        """
        for part in sorted(set(self.folder.glob("part-*.parquet")) - self._seen):
            table = _read_or_set_aside(part, ["sha256"])
            if table is None:
                continue
            self._seen.add(part)
            for row, sha256 in enumerate(table["sha256"].to_pylist()):
                self._places.setdefault(sha256, (part, row))
        return self._places

    def append(self, image_ids: Sequence[str], sha256s: Sequence[str], rows: np.ndarray) -> Path:
        """Write one part of [n, *shape]: temporary file, fsync, rename. Returns its path."""
        path = self.folder / f"part-{uuid.uuid4().hex}.parquet"
        with atomic_path(path) as temporary:
            write_part(temporary, self.values, image_ids, sha256s, rows)
        return path

    def failures(self) -> dict[str, dict[str, str]]:
        """What earlier runs could not read, by sha256; an image that was stored since is no failure.

        Tables that a crash of the machine left unreadable are set aside as `*.damaged`: their images are tried again.
        """
        tables = (_read_or_set_aside(path) for path in self.folder.glob("failures-*.parquet"))
        rows = [row for table in tables if table is not None for row in table.to_pylist()]
        known = self.known()
        return {row["sha256"]: row for row in rows if row["sha256"] not in known}

    def record_failures(self, failures: Sequence[Mapping[str, str]]) -> None:
        """Remember images that no later run needs to try: rows as `FAILURES` has them."""
        if failures:
            write_failures(failures, self.folder / f"failures-{uuid.uuid4().hex}.parquet")

    def remove_leftovers(self) -> None:
        """Remove the temporary files that killed runs have left, a day after they were written to for the last time.

        Who writes one now cannot be asked: claims are of runs alone, where the file system has locks, and those who
        copy parts into the store make none. Nobody writes a part for a day.
        """
        for path in self.folder.glob(".*.parquet.*"):
            with contextlib.suppress(FileNotFoundError):  # it has its name by now, or another run removed it
                if path.stat().st_mtime < time.time() - _LEFTOVER_SECONDS:
                    path.unlink()

    def link_into(self, out: Path, images: Sequence[tuple[str, str]], part_size: int) -> None:
        """Make the ordinary folder of `images`, (image_id, sha256) in manifest order, all of them known.

        Its parts are cut by `cut_into_parts`. One that the store holds just so is linked (reflink, hard link or
        copy), any other is gathered from the parts that hold its images; either way the bytes are the same.
        """
        places = self.known()
        out.mkdir(parents=True, exist_ok=True)
        for stale in [out / "_meta.json", *out.glob("part-*.parquet")]:
            stale.unlink(missing_ok=True)
        keys = _Keys()
        groups = _RowGroups(self.values)
        for number, part in enumerate(cut_into_parts([sha256 for _, sha256 in images], part_size)):
            wanted = list(images[part])
            target = out / f"part-{number:06d}.parquet"
            source = places[wanted[0][1]][0]
            if keys.of(source) == wanted:
                link(source, target)
                continue
            rows = np.stack([groups.row(*places[sha256]) for _, sha256 in wanted])
            ids, sha256s = zip(*wanted, strict=True)
            with atomic_path(target) as temporary:
                write_part(temporary, self.values, ids, sha256s, rows)
        # Last, because a folder without it is not a feature folder.
        with atomic_path(out / "_meta.json") as temporary:
            shutil.copyfile(self.folder / "_meta.json", temporary)


def _read_or_set_aside(path: Path, columns: list[str] | None = None) -> pa.Table | None:
    """A table of the store; None for one that is damaged, which becomes `*.damaged`, or that another run has set aside.

    Raises OSError that names the file where the disk or the system cannot read it now.
    """
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_suffix(".damaged"))
        return None


def _not_mounted(folder: Path) -> UserError:
    """What stands in the place of a store's folder or of one above it."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            return UserError(
                f"{path}: a link to {os.readlink(path)}, which is not there: is its disk mounted?"
            )
    return UserError(f"{folder}: not a folder, and the feature store needs one there")


class FeatureReader:
    """Reads a finished folder of features or codes, in order or at random; nothing is held in memory but what is asked for.

    made_by: what a user runs to make the folder, for messages.
    Raises UserError when the folder is none, or a part is damaged.
    """

    def __init__(self, folder: Path, made_by: str = "dvc repro extract") -> None:
        self.folder = Path(folder)
        try:
            self.meta = json.loads((self.folder / "_meta.json").read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}/_meta.json: no feature folder there; run `{made_by}`") from error
        self.values = values_of(self.meta)
        self.parts = sorted(self.folder.glob("part-*.parquet"))
        try:
            self._counts = [pq.ParquetFile(part).metadata.num_rows for part in self.parts]
        except (pa.ArrowInvalid, OSError) as error:
            again = made_by.replace("dvc repro", "dvc repro -f")
            raise UserError(f"{self.folder}: a part is damaged ({error}); run `{again}`") from error
        self._rows: list[np.ndarray] | None = None

    @property
    def feature_dim(self) -> int:
        """D of grid features."""
        return self.meta["feature_dim"]

    def __len__(self) -> int:
        """Number of images."""
        return sum(self._counts)

    def first_of(self, part: int) -> int:
        """Number of the first image of a part; of one behind the last, the number of images."""
        return sum(self._counts[:part])

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps do not travel to other processes; they are made again there.
        return {**self.__dict__, "_rows": None}

    def image_ids(self) -> list[str]:
        """The ids of all images, in order; no feature is read."""
        return [
            i
            for part in self.parts
            for i in pq.read_table(part, columns=["image_id"])["image_id"].to_pylist()
        ]

    def batches(self) -> Iterator[tuple[list[str], list[str], np.ndarray]]:
        """Yield (image_ids, sha256s, [n, *shape]) part by part."""
        for part in self.parts:
            table = pq.read_table(part)
            yield (
                table["image_id"].to_pylist(),
                table["sha256"].to_pylist(),
                _as_rows(table, self.values),
            )

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of any images by their place in the folder, [n, *shape], such as float16 [n, 64, D], through memory maps."""
        if self._rows is None:
            self._rows = [row for part in self.parts for row in _mapped_rows(part, self.values)]
        return np.stack([self._rows[i] for i in indices])


def write_part(
    path: Path, values: Values, image_ids: Sequence[str], sha256s: Sequence[str], rows: np.ndarray
) -> None:
    """Write [n, *shape] with its keys; uncompressed, since features hardly compress."""
    content = np.ascontiguousarray(rows, dtype=values.dtype).reshape(len(image_ids), values.count)
    buffer = pa.py_buffer(content)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.width), len(image_ids), [None, buffer])
    table = pa.Table.from_arrays([pa.array(image_ids), pa.array(sha256s), column], schema=values.schema)
    pq.write_table(
        table,
        path,
        compression="none",
        use_dictionary=False,
        row_group_size=_ROW_GROUP,
        data_page_size=_ONE_PAGE,
    )


def write_failures(failures: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write rows of `FAILURES` (other keys are left out), atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in failures], schema=FAILURES), temporary)


def link(source: Path, target: Path) -> None:
    """Make `target` the same content as `source`: reflink where the file system can, hard link, else copy."""
    target.unlink(missing_ok=True)
    try:
        import fcntl

        with open(source, "rb") as read, open(target, "wb") as write:
            fcntl.ioctl(write, 0x40049409, read.fileno())  # FICLONE
        return
    except (ImportError, OSError):
        target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


class _Keys:
    """(image_id, sha256) of the store's parts, the last one kept."""

    def __init__(self) -> None:
        self._part: Path | None = None
        self._keys: list[tuple[str, str]] = []

    def of(self, part: Path) -> list[tuple[str, str]]:
        if part != self._part:
            table = pq.read_table(part, columns=["image_id", "sha256"])
            self._part = part
            self._keys = list(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
        return self._keys


class _RowGroups:
    """Single rows of the store's parts. Neighbours in a manifest are neighbours in the store, so a few row groups
    kept at hand are enough."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._kept: OrderedDict[tuple[Path, int], np.ndarray] = OrderedDict()

    def row(self, part: Path, row: int) -> np.ndarray:
        """[*shape]."""
        group, offset = divmod(row, _ROW_GROUP)
        if (part, group) not in self._kept:
            while len(self._kept) >= 8:
                self._kept.popitem(last=False)
            table = pq.ParquetFile(part).read_row_group(group, columns=[self._values.column])
            self._kept[part, group] = _as_rows(table, self._values)
        self._kept.move_to_end((part, group))
        return self._kept[part, group][offset]


def _as_rows(table: pa.Table, values: Values) -> np.ndarray:
    """The values of some rows as [n, *shape], without a copy."""
    column = table[values.column].combine_chunks()
    numbers = np.frombuffer(column.buffers()[1], dtype=values.dtype)
    first = column.offset * values.count
    return numbers[first : first + len(table) * values.count].reshape(-1, *values.shape)


def _mapped_rows(part: Path, values: Values) -> Iterator[np.ndarray]:
    """The rows of a part, each [*shape] in the mapped file.

    Values of fixed length that are neither null nor compressed lie in a Parquet page one after the other. A row
    group that is not one such page (nobody but another program writes one) is read into memory.
    """
    file = pq.ParquetFile(part)
    column, width = file.schema_arrow.get_field_index(values.column), values.width
    with open(part, "rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    for group in range(file.num_row_groups):
        info, count = file.metadata.row_group(group).column(column), file.metadata.row_group(group).num_rows
        header = info.total_compressed_size - count * width
        start = info.data_page_offset
        if info.compression == "UNCOMPRESSED" and _page_size(mapped[start : start + 16]) == count * width:
            numbers = np.frombuffer(mapped, values.dtype, count * values.count, start + header)
            yield from numbers.reshape(count, *values.shape)
        else:
            yield from _as_rows(file.read_row_group(group, columns=[values.column]), values)


def _page_size(header: bytes) -> int:
    """Bytes of content of the data page whose Thrift header (compact protocol) begins so; -1 for another page.

    The header begins with two 32-bit integers, zigzag variable-length: the page's type (0, data) and its size.
    """
    if header[:3] != b"\x15\x00\x15":
        return -1
    value = shift = 0
    for byte in header[3:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value >> 1
