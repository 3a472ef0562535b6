"""The feature store: grid features keyed by everything that determines them, shared and never rewritten.

A store lives beside DVC (`<root>/<key>/`): `_meta.json` says what made the features, `part-*.parquet` hold
`image_id, sha256, features` where features is a fixed-size binary of little-endian float16 [64, D], row-major
from the top left. Rows are found by the sha256 of the image file: renamed images, duplicates and overlapping
datasets are never extracted twice. Another detector is another key. When a dataset is complete, its ordinary
folder is linked from the store; that folder depends on dataset and detector only, not on how many runs or
workers made the parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import UserError
from .files import atomic_path
from .grid import CELLS

FEATURE_VERSION = 1
_ROW_GROUP = 50


def feature_schema(feature_dim: int) -> pa.Schema:
    """Columns of a part; the dimension D fixes the width of the binary column (64 * D * 2 bytes)."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("features", pa.binary(CELLS * feature_dim * 2), nullable=False),
        ]
    )


class FeatureStore:
    """The parts of one key. `meta` is a JSON-able mapping that names everything that determines a feature;
    it must hold `feature_dim`."""

    def __init__(self, root: Path, meta: Mapping[str, Any]) -> None:
        self.meta = {"feature_version": FEATURE_VERSION, **meta}
        canonical = json.dumps(self.meta, sort_keys=True, separators=(",", ":"))
        self.folder = Path(root) / hashlib.sha256(canonical.encode()).hexdigest()[:32]
        self.schema = feature_schema(self.meta["feature_dim"])
        if not (self.folder / "_meta.json").exists():
            with atomic_path(self.folder / "_meta.json") as path:
                path.write_text(json.dumps(self.meta, indent=2, sort_keys=True) + "\n")

    def known(self) -> dict[str, tuple[Path, int]]:
        """Where each image is: sha256 -> (part, row). Reads the sha256 columns only.

        Parts that a crash of the machine left unreadable are set aside as `*.damaged` and extracted anew.
        """
        places: dict[str, tuple[Path, int]] = {}
        for part in sorted(self.folder.glob("part-*.parquet")):
            try:
                keys = pq.read_table(part, columns=["sha256"])["sha256"].to_pylist()
            except (pa.ArrowInvalid, OSError):
                part.rename(part.with_suffix(".damaged"))
                continue
            for row, sha256 in enumerate(keys):
                places.setdefault(sha256, (part, row))
        return places

    def append(self, image_ids: Sequence[str], sha256s: Sequence[str], features: np.ndarray) -> Path:
        """Write one part of float16 [n, 64, D]: temporary file, fsync, rename. Returns its path."""
        path = self.folder / f"part-{uuid.uuid4().hex}.parquet"
        with atomic_path(path) as temporary:
            write_part(temporary, self.schema, image_ids, sha256s, features)
        return path

    def link_into(self, out: Path, images: Sequence[tuple[str, str]], part_size: int) -> None:
        """Make the ordinary folder of `images`, (image_id, sha256) in manifest order, all of them known.

        A part that holds exactly the next `part_size` images is linked (reflink, hard link or copy); any
        other run of images is gathered into a new part. Either way the bytes are the same.
        """
        places = self.known()
        out.mkdir(parents=True, exist_ok=True)
        for stale in [out / "_meta.json", *out.glob("part-*.parquet")]:
            stale.unlink(missing_ok=True)
        tables: dict[Path, pa.Table] = {}
        for number, start in enumerate(range(0, len(images), part_size)):
            wanted = images[start : start + part_size]
            target = out / f"part-{number:06d}.parquet"
            source = places[wanted[0][1]][0]
            if self._holds_exactly(source, wanted):
                link(source, target)
                continue
            rows = []
            for _, sha256 in wanted:
                part, row = places[sha256]
                if part not in tables:
                    # A few parts at a time: neighbours in the manifest are neighbours in the store.
                    if len(tables) >= 8:
                        tables.pop(next(iter(tables)))
                    tables[part] = pq.read_table(part, columns=["features"])
                rows.append(tables[part]["features"][row].as_buffer())
            features = np.stack([np.frombuffer(row, dtype="<f2") for row in rows])
            ids, keys = zip(*wanted, strict=True)
            with atomic_path(target) as temporary:
                write_part(temporary, self.schema, ids, keys, features)
        # Last, because a folder without it is not a feature folder.
        shutil.copyfile(self.folder / "_meta.json", out / "_meta.json")

    @staticmethod
    def _holds_exactly(part: Path, wanted: Sequence[tuple[str, str]]) -> bool:
        table = pq.read_table(part, columns=["image_id", "sha256"])
        return list(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True)) == list(
            wanted
        )


class FeatureReader:
    """Streams a finished feature folder in order; nothing is held in memory but one batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            self.meta = json.loads((self.folder / "_meta.json").read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder}/_meta.json: no feature folder there; run `dvc repro extract`"
            ) from error
        self.feature_dim: int = self.meta["feature_dim"]
        self.parts = sorted(self.folder.glob("part-*.parquet"))
        try:
            self._counts = [pq.ParquetFile(part).metadata.num_rows for part in self.parts]
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.folder}: a part is damaged ({error}); run `dvc repro extract`") from error

    def __len__(self) -> int:
        """Number of images."""
        return sum(self._counts)

    def batches(self) -> Iterator[tuple[list[str], list[str], np.ndarray]]:
        """Yield (image_ids, sha256s, float16 [n, 64, D]) part by part."""
        for part in self.parts:
            table = pq.read_table(part)
            column = table["features"].combine_chunks()
            features = np.frombuffer(column.buffers()[1], dtype="<f2").reshape(
                len(table), CELLS, self.feature_dim
            )
            yield table["image_id"].to_pylist(), table["sha256"].to_pylist(), features


def write_part(
    path: Path, schema: pa.Schema, image_ids: Sequence[str], sha256s: Sequence[str], features: np.ndarray
) -> None:
    """Write float16 [n, 64, D] with its keys; uncompressed, since float16 features hardly compress."""
    width = schema.field("features").type.byte_width
    content = np.ascontiguousarray(features, dtype="<f2").reshape(len(image_ids), -1)
    buffer = pa.py_buffer(content)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(image_ids), [None, buffer])
    table = pa.Table.from_arrays([pa.array(image_ids), pa.array(sha256s), column], schema=schema)
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=_ROW_GROUP)


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
        shutil.copyfile(source, target)
