"""Training shards: plain WebDataset tars, read through an index of offsets and memory mapping.

`{key}.grid.npy` float16 [64, D], `{key}.codes.npy` uint16 [64], `{key}.json` (image_id, split, captions,
objects, width, height) and `{key}.jpg`. Tar members are not compressed, so an array is a slice of the mapped
file: no parsing, no copy but the batch's own, any order. Any WebDataset reader opens the same files.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .codebook import read_codes
from .errors import UserError
from .files import atomic_path, sha256_of
from .grid import CELLS
from .images import image_size, read_image, resize_square, to_uint8_tensor
from .manifest import resolve_image
from .store import FeatureReader

VERSION = 1
_MEMBERS = ("grid.npy", "codes.npy", "json", "jpg")


def write_shards(
    manifest: pa.Table, manifest_path: Path, features: Path, codebook: Path, out: Path, shard_size: int
) -> dict[str, int]:
    """Write `{split}-{number}.tar` with `shard_size` samples each, and index.json. Returns counts per split.

    Samples are in the manifest's order, tars are deterministic (no times, no owners). Images without
    features (they failed in extraction) are left out.
    Raises UserError when features and codes are not of the same images.
    """
    reader = FeatureReader(features)
    code_ids, codes = read_codes(codebook)
    rows = {row["image_id"]: row for row in manifest.to_pylist()}
    index: dict[str, Any] = {"version": VERSION, "feature_dim": reader.feature_dim, "splits": {}}
    writers: dict[str, _ShardWriter] = {}
    position = 0
    (out / "index.json").unlink(missing_ok=True)  # so that no index describes other tars
    for image_ids, _, grids in tqdm(
        reader.batches(), total=len(reader.parts), desc="shards", unit="part", mininterval=1
    ):
        if code_ids[position : position + len(image_ids)] != image_ids:
            raise UserError(f"{codebook}: codes are not of the images in {features}; run `dvc repro cluster`")
        for offset, (image_id, grid) in enumerate(zip(image_ids, grids, strict=True)):
            row = rows.get(image_id)
            if row is None:
                raise UserError(
                    f"{manifest_path}: lacks {image_id}, which has features; run `dvc repro extract`"
                )
            if row["split"] not in writers:
                writers[row["split"]] = _ShardWriter(out, row["split"], shard_size)
            sample = {
                "grid.npy": _npy(grid.astype("<f2")),
                "codes.npy": _npy(codes[position + offset].astype("<u2")),
                "json": json.dumps(
                    {k: row[k] for k in ("image_id", "split", "captions", "objects", "width", "height")}
                ).encode(),
                "jpg": _jpeg(resolve_image(manifest_path, row["path"])),
            }
            writers[row["split"]].write(image_id, sample)
        position += len(image_ids)
    for split, writer in sorted(writers.items()):
        index["splits"][split] = writer.close()
    with atomic_path(out / "index.json") as path:
        path.write_text(json.dumps(index) + "\n")
    return {split: sum(len(s["keys"]) for s in shards) for split, shards in index["splits"].items()}


class ShardDataset:
    """Samples of one split in any order: index.json and memory maps, nothing decoded before it is asked for.

    Raises UserError when the index is missing, or a shard is missing or not as long as the index says.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        try:
            index = json.loads((self.folder / "index.json").read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}/index.json: no shards there; run `dvc repro shard`") from error
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.folder}/index.json: damaged ({error}); run `dvc repro -f shard`"
            ) from error
        if index["version"] != VERSION:
            raise UserError(
                f"{self.folder}/index.json: version {index['version']}, this version reads {VERSION}"
            )
        if split not in index["splits"]:
            known = ", ".join(sorted(index["splits"]))
            raise UserError(f"{self.folder}/index.json: no split {split!r}; it has {known}")
        self.feature_dim: int = index["feature_dim"]
        self.keys: list[str] = []
        self._places: list[tuple[int, list[list[int]]]] = []  # shard, [offset, length] of each member
        self._maps: list[mmap.mmap] = []
        for number, shard in enumerate(index["splits"][split]):
            path = self.folder / shard["name"]
            if not path.exists():
                raise UserError(
                    f"{path}: the shard is missing; `dvc checkout` or `dvc repro shard` brings it back"
                )
            if path.stat().st_size != shard["size"]:
                raise UserError(
                    f"{path}: {path.stat().st_size} bytes instead of {shard['size']}, the shard is damaged; "
                    "remove it and `dvc checkout`, or run `dvc repro -f shard`"
                )
            with open(path, "rb") as file:
                self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self.keys += shard["keys"]
            self._places += [(number, members) for members in shard["members"]]
        self._meta: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def grid(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Grid features, float16 [n, 64, D]."""
        rows = [self._array(i, "grid.npy", "<f2") for i in indices]
        return np.stack(rows).reshape(len(rows), CELLS, self.feature_dim)

    def codes(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes, int64 [n, 64]."""
        return np.stack([self._array(i, "codes.npy", "<u2") for i in indices]).astype(np.int64)

    def meta(self, index: int) -> dict[str, Any]:
        """What {key}.json holds: image_id, split, captions, objects, width, height."""
        if index not in self._meta:
            self._meta[index] = json.loads(self._bytes(index, "json"))
        return self._meta[index]

    def captions(self, index: int) -> list[str]:
        """The reference captions of a sample."""
        return self.meta(index)["captions"]

    def image_bytes(self, index: int) -> bytes:
        """The image as an encoded JPEG."""
        return self._bytes(index, "jpg")

    def images(self, indices: Sequence[int] | np.ndarray, size: int) -> Tensor:
        """Decoded images, uint8 [n, 3, size, size]; others than square ones are squeezed."""

        def decode(index: int) -> Tensor:
            return to_uint8_tensor(resize_square(read_image(self.image_bytes(index), self.keys[index]), size))

        if len(indices) * size * size < 2**22:
            return torch.stack([decode(i) for i in indices])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(decode, indices)))

    def _array(self, index: int, member: str, dtype: str) -> np.ndarray:
        number, members = self._places[index]
        offset, length = members[_MEMBERS.index(member)]
        return np.frombuffer(self._maps[number], dtype, count=length // 2, offset=offset)

    def _bytes(self, index: int, member: str) -> bytes:
        number, members = self._places[index]
        offset, length = members[_MEMBERS.index(member)]
        return self._maps[number][offset : offset + length]


class _ShardWriter:
    """Fills one tar after the other; a tar gets its name when it is complete."""

    def __init__(self, folder: Path, split: str, shard_size: int) -> None:
        self.folder, self.split, self.shard_size = folder, split, shard_size
        self.shards: list[dict[str, Any]] = []
        self._samples: list[tuple[str, dict[str, bytes]]] = []

    def write(self, key: str, sample: dict[str, bytes]) -> None:
        self._samples.append((key, sample))
        if len(self._samples) == self.shard_size:
            self._flush()

    def close(self) -> list[dict[str, Any]]:
        self._flush()
        return self.shards

    def _flush(self) -> None:
        if not self._samples:
            return
        path = self.folder / f"{self.split}-{len(self.shards):06d}.tar"
        places: list[list[list[int]]] = []
        with atomic_path(path) as temporary:
            with (
                open(temporary, "wb") as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                for key, sample in self._samples:
                    places.append(list(_add_members(tar, file, key, sample)))
            digest, size = sha256_of(temporary), temporary.stat().st_size
        keys = [key for key, _ in self._samples]
        self.shards.append(
            {"name": path.name, "sha256": digest, "size": size, "keys": keys, "members": places}
        )
        self._samples.clear()


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


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npy_header(content: bytes) -> int:
    """Length of the header of a version 1.0 .npy file: magic, version, two bytes of length, the text."""
    return 10 + int.from_bytes(content[8:10], "little")


def _jpeg(path: Path) -> bytes:
    """The file's own bytes if it is an upright RGB JPEG, else the image encoded as one (quality 95)."""
    image_size(path)  # raises ImageError where a file went missing or bad since its features were made
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1:
            return content
    buffer = io.BytesIO()
    read_image(content, str(path)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
