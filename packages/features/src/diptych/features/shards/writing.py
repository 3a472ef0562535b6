"""Writing shards from a manifest, features and codes; a run that was stopped goes on where it was."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from diptych.features.codebook.reading import read_codes
from diptych.features.errors import UserError
from diptych.features.files import atomic_path, sha256_of
from diptych.features.images import as_jpeg, image_size
from diptych.features.manifest import resolve_image
from diptych.features.processor import usable_cores
from diptych.features.shards.index import MEMBERS, VERSION
from diptych.features.store import FeatureReader

_META = ("image_id", "split", "captions", "objects", "width", "height")
# Samples in memory at a time while a shard is written.
_BLOCK = 32


def write_shards(
    manifest: pa.Table, manifest_path: Path, features: Path, codebook: Path, out: Path, shard_size: int
) -> dict[str, int]:
    """Write `{split}-{number}.tar` with `shard_size` samples each, and index.json. Returns counts per split.

    Samples are in the manifest's order, tars are deterministic (no times, no owners). Images without
    features (they failed in extraction) are left out.

    A shard that is complete leaves a record beside it until the index is written: a run that was stopped goes on
    with the shards that `out` lacks, and takes none that was made from other features, codes, captions or pictures.
    `out` belongs to this function: tars of an earlier run that the new index does not name are removed.
    Raises UserError when features and codes are not of the same images, an image's file is missing or is not the
    one of the manifest, or the disk is full (what is complete stays, nothing half-written does).
    """
    reader = FeatureReader(features)
    image_ids, (code_ids, codes) = reader.image_ids(), read_codes(codebook)
    if image_ids != code_ids:
        raise UserError(f"{codebook}: codes are not of the images in {features}; run `dvc repro cluster`")
    rows = {image_id: row for row, image_id in enumerate(manifest["image_id"].to_pylist())}
    if unknown := [image_id for image_id in image_ids if image_id not in rows]:
        raise UserError(f"{manifest_path}: lacks {unknown[0]}, which has features; run `dvc repro extract`")
    places = np.array([rows[image_id] for image_id in image_ids], dtype=np.int64)
    source = _Source(manifest, manifest_path, places, reader, codes)

    out.mkdir(parents=True, exist_ok=True)
    (out / "index.json").unlink(missing_ok=True)  # so that no index describes other tars
    for path in out.glob(".*.tar*"):  # what a killed run was writing
        path.unlink()
    splits: dict[str, list[dict[str, Any]]] = {}
    with (
        tqdm(total=len(image_ids), desc="shards", unit="image", mininterval=1) as bar,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        for split, name, samples in _plan(manifest["split"].take(pa.array(places)), shard_size):
            meta = source.meta(samples)
            made_from = source.fingerprint(samples, meta)
            shard = _recorded(out / name, made_from)
            if shard is None:
                try:
                    shard = _write_shard(out / name, source.samples(samples, meta, pool), bar)
                    with atomic_path(_record(out / name)) as path:
                        path.write_text(json.dumps({"made_from": made_from, "shard": shard}))
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise UserError(
                        f"{out}: the disk is full after {bar.n} of {bar.total} samples; free some space and run it "
                        "again: the shards that are complete stay, nothing half-written was kept"
                    ) from error
            else:
                bar.update(len(samples))
            splits.setdefault(split, []).append(shard)
    splits = dict(sorted(splits.items()))
    index = {"version": VERSION, "feature_dim": reader.feature_dim, "splits": splits}
    with atomic_path(out / "index.json") as path:
        path.write_text(json.dumps(index) + "\n")
    names = {shard["name"] for shards in splits.values() for shard in shards}
    for path in [*out.glob("*.tar"), *out.glob("*.tar.record")]:
        if path.name not in names:  # records, and shards of an earlier run with other splits or sizes
            path.unlink()
    return {split: sum(shard["count"] for shard in shards) for split, shards in splits.items()}


@dataclass(frozen=True)
class _Source:
    """What samples are made of; a sample is named by its place among the features."""

    manifest: pa.Table
    manifest_path: Path
    rows: np.ndarray  # of the manifest, int64 [n]
    reader: FeatureReader
    codes: np.ndarray  # int64 [n, 64]

    def meta(self, samples: np.ndarray) -> list[dict[str, Any]]:
        """Rows of the manifest."""
        return self.manifest.take(pa.array(self.rows[samples])).to_pylist()

    def fingerprint(self, samples: np.ndarray, meta: Sequence[dict[str, Any]]) -> str:
        """Hash of everything that a shard's bytes follow from."""
        parts = [VERSION, MEMBERS, self.reader.meta, [(row["sha256"], _json(row)) for row in meta]]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        digest.update(self.codes[samples].astype("<u2").tobytes())
        return digest.hexdigest()

    def samples(
        self, samples: np.ndarray, meta: Sequence[dict[str, Any]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Keys and members' contents."""
        for first in range(0, len(samples), _BLOCK):
            places, rows = samples[first : first + _BLOCK], meta[first : first + _BLOCK]
            jpegs = pool.map(self._jpeg, rows)
            for row, grid, codes, jpeg in zip(
                rows, self.reader.rows(places), self.codes[places], jpegs, strict=True
            ):
                yield (
                    row["image_id"],
                    {
                        "grid.npy": _npy(grid.astype("<f2", copy=False)),
                        "codes.npy": _npy(codes.astype("<u2")),
                        "json": _json(row).encode(),
                        "jpg": jpeg,
                    },
                )

    def _jpeg(self, row: dict[str, Any]) -> bytes:
        """The file's own bytes if it is an upright RGB JPEG, else the image encoded as one (quality 95)."""
        path = resolve_image(self.manifest_path, row["path"])
        image_size(path)  # raises ImageError where a file went missing or bad since its features were made
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            raise UserError(f"{path}: not the image whose features were made; run `dvc repro dataset`")
        return as_jpeg(content, str(path))


def _plan(splits: pa.ChunkedArray, shard_size: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Split, file name and samples, int64 [m], of every shard."""
    values = splits.combine_chunks().dictionary_encode()
    for number, split in enumerate(values.dictionary.to_pylist()):
        samples = np.flatnonzero(values.indices.to_numpy() == number)
        for shard, first in enumerate(range(0, len(samples), shard_size)):
            yield split, f"{split}-{shard:06d}.tar", samples[first : first + shard_size]


def _write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]], bar: tqdm) -> dict[str, Any]:
    """Write a tar; it gets its name when it is complete. Returns its entry in the index."""
    keys: list[str] = []
    places: list[list[list[int]]] = []
    with atomic_path(path) as temporary:
        with (
            open(temporary, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for key, sample in samples:
                keys.append(key)
                places.append(list(_add_members(tar, file, key, sample)))
                bar.update()
        digest, size = sha256_of(temporary), temporary.stat().st_size
    return {
        "name": path.name,
        "size": size,
        "sha256": digest,
        "count": len(keys),
        "keys": keys,
        "members": places,
    }


def _add_members(
    tar: tarfile.TarFile, file: io.BufferedIOBase, key: str, sample: dict[str, bytes]
) -> Iterable[list[int]]:
    """Add a sample; yields [offset, length] of each member's data (of the values in the case of arrays)."""
    for name in MEMBERS:
        content = sample[name]
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(content)
        start = file.tell() + tarfile.BLOCKSIZE
        tar.addfile(info, io.BytesIO(content))
        header = _npy_header(content) if name.endswith(".npy") else 0
        yield [start + header, len(content) - header]


def _record(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.record")


def _recorded(shard: Path, made_from: str) -> dict[str, Any] | None:
    """The index's entry of a shard that an earlier run completed from the same, or None."""
    try:
        record = json.loads(_record(shard).read_text())
        complete = record["made_from"] == made_from and shard.stat().st_size == record["shard"]["size"]
    except (OSError, ValueError, KeyError):
        return None
    return record["shard"] if complete else None


def _json(row: dict[str, Any]) -> str:
    """The content of {key}.json."""
    return json.dumps({name: row[name] for name in _META})


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npy_header(content: bytes) -> int:
    """Length of the header of a version 1.0 .npy file: magic, version, two bytes of length, the text."""
    return 10 + int.from_bytes(content[8:10], "little")
