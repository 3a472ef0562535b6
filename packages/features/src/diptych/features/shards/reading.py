"""Reading shards: samples of a split in any order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diptych.features.addresses import is_address
from diptych.features.errors import UserError
from diptych.features.files import sha256_of
from diptych.features.grid import CELLS
from diptych.features.images import read_image, square_pictures
from diptych.features.processor import usable_cores
from diptych.features.shards.index import CODES, GRID, JPG, JSON, MEMBERS, read_index
from diptych.features.shards.sources import CACHE_BYTES, LocalShards, RemoteShards

CACHE = Path(".cache/shards")
TEXTS_AHEAD = 256


class ShardDataset:
    """Samples of one split in any order: index.json and the shards' bytes, nothing decoded before it is asked for.

    Shards that are here are mapped into memory; it holds no file open, however many shards there are. `folder` may also be an
    address (:mod:`diptych.features.addresses`), whose samples come through a cache on disk. It travels to other processes (spawned
    DataLoader workers, Ray): the index goes along, files are mapped again there.

    verify: also compare every shard's sha256 with the index's, at the speed of the disk. cache, cache_bytes: of an address: the folder,
    and how large it may be.
    Raises UserError when the index is missing or damaged, or a shard is missing, not as long as the index says or,
    if verified, another.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        verify: bool = False,
        cache: Path = CACHE,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        remote = is_address(folder)
        self.folder: Path | str = folder if remote else Path(folder)
        self.split = split
        index = read_index(self.folder)
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
        self._bytes = (
            RemoteShards(str(folder), self._files, cache, cache_bytes)
            if remote
            else LocalShards(Path(folder), self._files)
        )
        if verify:
            self.verify()

    def __len__(self) -> int:
        return len(self.keys)

    def verify(self) -> None:
        """Raises UserError that names the shards whose bytes are not those that were written. Those of an address are not read for it:
        each range is as long as the index says, and the cache is keyed by the shards' sha256."""
        if is_address(self.folder):
            return

        def is_other(file: tuple[str, int, str]) -> bool:
            return sha256_of(Path(self.folder) / file[0]) != file[2]

        with ThreadPoolExecutor(usable_cores()) as pool:
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
        self._prepare(indices, GRID)
        out = np.empty((len(indices), CELLS * self.feature_dim), dtype="<f2")
        for row, index in zip(out, indices, strict=True):
            row[:] = self._slice(index, GRID).view("<f2")
        return out.reshape(-1, CELLS, self.feature_dim)

    def grid_tensor(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Grid features, float32 [n, 64, D], converted straight from the mapped files into the batch."""
        self._prepare(indices, GRID)
        # numpy asks for huge pages, torch does not: fresh memory then costs a fraction of its page faults
        out = torch.from_numpy(np.empty((len(indices), CELLS * self.feature_dim), dtype=np.float32))
        for row, index in zip(out, indices, strict=True):
            row.copy_(torch.from_numpy(self._slice(index, GRID).view("<f2")))
        return out.view(-1, CELLS, self.feature_dim)

    def codes(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes, int64 [n, 64]."""
        self._prepare(indices, CODES)
        return np.stack([self._slice(index, CODES).view("<u2") for index in indices]).astype(np.int64)

    def meta(self, index: int) -> dict[str, Any]:
        """What {key}.json holds: image_id, split, captions, objects, width, height.

        Parsed each time (about 10 microseconds): all of COCO kept as objects would be a gigabyte in every process.
        """
        if isinstance(self._bytes, RemoteShards) and not self._bytes.has(
            int(self._shards[index]), self._places[index], JSON
        ):
            # who reads one text reads those after it
            self._prepare(range(index, min(index + TEXTS_AHEAD, len(self))), JSON)
        return json.loads(self._slice(index, JSON).tobytes())

    def captions(self, index: int) -> list[str]:
        """The reference captions of a sample."""
        return self.meta(index)["captions"]

    def image_bytes(self, index: int) -> bytes:
        """The image as an encoded JPEG."""
        return self._slice(index, JPG).tobytes()

    def images(self, indices: Sequence[int] | np.ndarray, size: int) -> Tensor:
        """Decoded images, uint8 [n, 3, size, size]; others than square ones are squeezed."""

        self._prepare(indices, JPG)

        def read(index: int) -> Image.Image:
            return read_image(self.image_bytes(index), self.keys[index])

        return square_pictures(read, indices, size)

    def _slice(self, index: int, member: int) -> np.ndarray:
        """A member's bytes, uint8; to be read only."""
        return self._bytes.member(int(self._shards[index]), self._places[index], member)

    def _prepare(self, indices: Iterable[int] | np.ndarray, member: int) -> None:
        if isinstance(self._bytes, LocalShards):
            return
        self._bytes.prepare([(int(self._shards[index]), self._places[index]) for index in indices], member)

    def _check_places(self) -> None:
        sizes = np.array([size for _, size, _ in self._files], dtype=np.int64)
        grid = CELLS * self.feature_dim * 2
        if (
            self._places.shape != (len(self.keys), len(MEMBERS), 2)
            or (self._places < 0).any()
            or (self._places.sum(axis=2) > sizes[self._shards, None]).any()
            or (self._places[:, :2, 1] != (grid, CELLS * 2)).any()
        ):
            raise UserError(
                f"{self.folder}/index.json: damaged (its places do not fit its shards); run `dvc repro -f shard`"
            )
