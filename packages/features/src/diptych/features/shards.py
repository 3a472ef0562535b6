"""Training shards: plain WebDataset tars, read through an index of offsets and memory mapping.

`{key}.grid.npy` float16 [64, D], `{key}.codes.npy` uint16 [64], `{key}.json` (image_id, split, captions,
objects, width, height) and `{key}.jpg`. Tar members are not compressed, so an array is a slice of the mapped
file: no parsing, no copy but the batch's own, any order. Any WebDataset reader opens the same files.

`index.json`: version, feature_dim, and for each split its shards: name, size in bytes, sha256, count, keys, and
members: for each key [offset, length] of the four in the order above (of an array's values, not its header).
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from diptych.features.codebook import read_codes
from diptych.features.errors import UserError
from diptych.features.files import atomic_path, sha256_of
from diptych.features.grid import CELLS
from diptych.features.images import image_size, read_image, resize_square, to_uint8_tensor
from diptych.features.manifest import resolve_image
from diptych.features.order import batch_indices
from diptych.features.store import FeatureReader

VERSION = 1
_MEMBERS = ("grid.npy", "codes.npy", "json", "jpg")
_GRID, _CODES, _JSON, _JPG = range(4)
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
        ThreadPoolExecutor(os.cpu_count()) as pool,
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


class ShardDataset:
    """Samples of one split in any order: index.json and memory maps, nothing decoded before it is asked for.

    It holds no file open, however many shards there are, and travels to other processes (spawned DataLoader
    workers, Ray): the index goes along, the files are mapped again there.

    verify: also compare every shard's sha256 with the index's, at the speed of the disk.
    Raises UserError when the index is missing or damaged, or a shard is missing, not as long as the index says or,
    if verified, another.
    """

    def __init__(self, folder: Path, split: str, verify: bool = False) -> None:
        self.folder, self.split = Path(folder), split
        index = _read_index(self.folder)
        if split not in index["splits"]:
            known = ", ".join(sorted(index["splits"]))
            raise UserError(f"{self.folder}/index.json: no split {split!r}; it has {known}")
        shards = index["splits"][split]
        self.feature_dim: int = index["feature_dim"]
        self.keys: list[str] = [key for shard in shards for key in shard["keys"]]
        self._files = [(shard["name"], shard["size"], shard["sha256"]) for shard in shards]
        # Of each sample: its shard, and [offset, length] of its members.
        self._shards = np.repeat(np.arange(len(shards)), [len(shard["keys"]) for shard in shards])
        self._places = np.array([sample for shard in shards for sample in shard["members"]], dtype=np.int64)
        self._check_places()
        self._maps = self._map()
        if verify:
            self.verify()

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._maps = self._map()

    def verify(self) -> None:
        """Raises UserError that names the shards whose bytes are not those that were written."""

        def is_other(file: tuple[str, int, str]) -> bool:
            return sha256_of(self.folder / file[0]) != file[2]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(is_other, self._files)
            bar = tqdm(results, total=len(self._files), desc="verify", unit="shard", mininterval=1)
            other = [name for (name, _, _), differs in zip(self._files, bar, strict=True) if differs]
        if other:
            raise UserError(
                f"{self.folder}: the sha256 of {len(other)} of {len(self._files)} shards differs from index.json's "
                f"({', '.join(other[:5])}{', ...' if len(other) > 5 else ''}); remove them and `dvc checkout`, or run "
                "`dvc repro -f shard`"
            )

    def grid(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grid features, float16 [n, 64, D]."""
        out = np.empty((len(indices), CELLS * self.feature_dim), dtype="<f2")
        for row, index in zip(out, indices, strict=True):
            row[:] = self._slice(index, _GRID).view("<f2")
        return out.reshape(-1, CELLS, self.feature_dim)

    def grid_tensor(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Grid features, float32 [n, 64, D], converted straight from the mapped files into the batch."""
        # numpy asks for huge pages, torch does not: fresh memory then costs a fraction of its page faults
        out = torch.from_numpy(np.empty((len(indices), CELLS * self.feature_dim), dtype=np.float32))
        for row, index in zip(out, indices, strict=True):
            row.copy_(torch.from_numpy(self._slice(index, _GRID).view("<f2")))
        return out.view(-1, CELLS, self.feature_dim)

    def codes(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes, int64 [n, 64]."""
        return np.stack([self._slice(index, _CODES).view("<u2") for index in indices]).astype(np.int64)

    def meta(self, index: int) -> dict[str, Any]:
        """What {key}.json holds: image_id, split, captions, objects, width, height.

        Parsed each time (about 10 microseconds): all of COCO kept as objects would be a gigabyte in every process.
        """
        return json.loads(self._slice(index, _JSON).tobytes())

    def captions(self, index: int) -> list[str]:
        """The reference captions of a sample."""
        return self.meta(index)["captions"]

    def image_bytes(self, index: int) -> bytes:
        """The image as an encoded JPEG."""
        return self._slice(index, _JPG).tobytes()

    def images(self, indices: Sequence[int] | np.ndarray, size: int) -> Tensor:
        """Decoded images, uint8 [n, 3, size, size]; others than square ones are squeezed."""

        def decode(index: int) -> Tensor:
            return to_uint8_tensor(resize_square(read_image(self.image_bytes(index), self.keys[index]), size))

        if len(indices) * size * size < 2**22:
            return torch.stack([decode(i) for i in indices])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(decode, indices)))

    def _slice(self, index: int, member: int) -> np.ndarray:
        """A member's bytes in the mapped file, uint8; to be read only."""
        offset, length = self._places[index, member].tolist()
        return self._maps[self._shards[index]][offset : offset + length]

    def _map(self) -> list[np.ndarray]:
        """Every shard's bytes, mapped.

        By torch, which leaves no file open and reads nothing yet: Python's mmap keeps each file open, Arrow's asks
        the system to read all of it at once.
        """
        maps = []
        for name, size, _ in self._files:
            path = self.folder / name
            if not path.exists():
                raise UserError(
                    f"{path}: the shard is missing; `dvc checkout` or `dvc repro shard` brings it back"
                )
            if path.stat().st_size != size:
                raise UserError(
                    f"{path}: {path.stat().st_size} bytes instead of {size}, the shard is damaged; "
                    "remove it and `dvc checkout`, or run `dvc repro -f shard`"
                )
            maps.append(torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy())
        return maps

    def _check_places(self) -> None:
        sizes = np.array([size for _, size, _ in self._files], dtype=np.int64)
        grid = CELLS * self.feature_dim * 2
        if (
            self._places.shape != (len(self.keys), len(_MEMBERS), 2)
            or (self._places < 0).any()
            or (self._places.sum(axis=2) > sizes[self._shards, None]).any()
            or (self._places[:, :2, 1] != (grid, CELLS * 2)).any()
        ):
            raise UserError(
                f"{self.folder}/index.json: damaged (its places do not fit its shards); run `dvc repro -f shard`"
            )


class ShardStream(IterableDataset):
    """The batches of one rank, step after step, for a training loop or `DataLoader(stream, batch_size=None)`.

    The order is that of `order.batch_indices`: every sample once an epoch, a function of (seed, step) alone. It is
    cut by sample, not by shard: one shard serves any number of ranks and workers. Every rank gets
    batch_size / world_size samples in every step, also where an epoch ends within a batch, so that no rank waits
    for another; a step holds the same samples whatever the number of ranks. DataLoader workers take turns step by
    step, and the loader hands the steps out in order.

    Yields dicts: `step`, `keys`, and the members asked for: `grid` float32 or float16 [n, 64, D], `codes` int64
    [n, 64], `captions` and `meta` lists, `jpg` list of bytes.

    To resume, keep `state(step)` of the next step in the training's checkpoint and call `resume` with it before the
    loader is made. (How far a loader's workers have read ahead is not how far training is.)

    batch_size: samples of a step over all ranks. start, stop: the first step and the one after the last (None: no
    end; a loop over it must then end itself). grid_type: torch.float16 leaves the conversion to the device.
    Raises UserError when the ranks cannot share a batch equally, or the split is empty.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
        members: Sequence[str] = ("grid", "codes", "captions"),
        grid_type: torch.dtype = torch.float32,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is none of {world_size} ranks (0 .. {world_size - 1})")
        if unknown := set(members) - {"grid", "codes", "captions", "meta", "jpg"}:
            raise ValueError(f"a sample has no {', '.join(sorted(unknown))}")
        if batch_size < 1 or batch_size % world_size:
            share = max(1, batch_size // world_size)
            raise UserError(
                f"batch_size {batch_size} cannot be shared equally among {world_size} ranks; take a multiple, "
                f"such as {share} x {world_size} = {share * world_size}"
            )
        if not len(dataset):
            raise UserError(f"{dataset.folder}: split {dataset.split!r} has no sample")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.start, self.stop = start, stop
        self.members, self.grid_type = tuple(members), grid_type

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for step in itertools.count(self.start + worker, workers):
            if self.stop is not None and step >= self.stop:
                return
            yield self.batch(step)

    def __len__(self) -> int:
        """Steps from start to stop; TypeError where there is no end."""
        if self.stop is None:
            raise TypeError("a stream without `stop` has no length")
        return max(0, self.stop - self.start)

    def batch(self, step: int) -> dict[str, Any]:
        """This rank's share of a step."""
        data = self.dataset
        indices = batch_indices(
            len(data), self.batch_size, self.seed, step, self.rank, self.world_size
        ).tolist()
        batch: dict[str, Any] = {"step": step, "keys": [data.keys[index] for index in indices]}
        if "grid" in self.members:
            batch["grid"] = (
                data.grid_tensor(indices)
                if self.grid_type == torch.float32
                else torch.from_numpy(data.grid(indices)).to(self.grid_type)
            )
        if "codes" in self.members:
            batch["codes"] = torch.from_numpy(data.codes(indices))
        if "captions" in self.members:
            batch["captions"] = [data.captions(index) for index in indices]
        if "meta" in self.members:
            batch["meta"] = [data.meta(index) for index in indices]
        if "jpg" in self.members:
            batch["jpg"] = [data.image_bytes(index) for index in indices]
        return batch

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps so that `resume` goes on with `step`: numbers and strings."""
        keys = hashlib.sha256("\n".join(self.dataset.keys).encode()).hexdigest()
        return {"step": step, "seed": self.seed, "batch_size": self.batch_size, "keys": keys}

    def resume(self, state: dict[str, Any]) -> None:
        """Start where `state` was taken; the number of ranks and workers may be another.

        Raises UserError when the samples, the seed or batch_size are others: the epoch could not be completed.
        """
        own = self.state(state["step"])
        if changed := [name for name in own if own[name] != state[name]]:
            raise UserError(
                f"{self.dataset.folder}: the checkpoint is of another order of samples ({', '.join(changed)} differ); "
                "restore them or start anew"
            )
        self.start = state["step"]


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
        parts = [VERSION, _MEMBERS, self.reader.meta, [(row["sha256"], _json(row)) for row in meta]]
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
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1:
                return content
        buffer = io.BytesIO()
        read_image(content, str(path)).save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()


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
    for name in _MEMBERS:
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


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text())
        version = index["version"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no shards there; run `dvc repro shard`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); run `dvc repro -f shard`") from error
    if version != VERSION:
        raise UserError(f"{path}: version {version}, this version reads {VERSION}")
    return index


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
