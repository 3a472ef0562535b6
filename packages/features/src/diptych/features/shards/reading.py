"""Reading shards: samples of a split in any order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diptych.features.errors import UserError
from diptych.features.files import sha256_of
from diptych.features.grid import CELLS
from diptych.features.images import read_image, square_pictures
from diptych.features.processor import usable_cores
from diptych.features.shards.index import CODES, GRID, JPG, JSON, MEMBERS, read_index


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
        out = np.empty((len(indices), CELLS * self.feature_dim), dtype="<f2")
        for row, index in zip(out, indices, strict=True):
            row[:] = self._slice(index, GRID).view("<f2")
        return out.reshape(-1, CELLS, self.feature_dim)

    def grid_tensor(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Grid features, float32 [n, 64, D], converted straight from the mapped files into the batch."""
        # numpy asks for huge pages, torch does not: fresh memory then costs a fraction of its page faults
        out = torch.from_numpy(np.empty((len(indices), CELLS * self.feature_dim), dtype=np.float32))
        for row, index in zip(out, indices, strict=True):
            row.copy_(torch.from_numpy(self._slice(index, GRID).view("<f2")))
        return out.view(-1, CELLS, self.feature_dim)

    def codes(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes, int64 [n, 64]."""
        return np.stack([self._slice(index, CODES).view("<u2") for index in indices]).astype(np.int64)

    def meta(self, index: int) -> dict[str, Any]:
        """What {key}.json holds: image_id, split, captions, objects, width, height.

        Parsed each time (about 10 microseconds): all of COCO kept as objects would be a gigabyte in every process.
        """
        return json.loads(self._slice(index, JSON).tobytes())

    def captions(self, index: int) -> list[str]:
        """The reference captions of a sample."""
        return self.meta(index)["captions"]

    def image_bytes(self, index: int) -> bytes:
        """The image as an encoded JPEG."""
        return self._slice(index, JPG).tobytes()

    def images(self, indices: Sequence[int] | np.ndarray, size: int) -> Tensor:
        """Decoded images, uint8 [n, 3, size, size]; others than square ones are squeezed."""

        def read(index: int) -> Image.Image:
            return read_image(self.image_bytes(index), self.keys[index])

        return square_pictures(read, indices, size)

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
            self._places.shape != (len(self.keys), len(MEMBERS), 2)
            or (self._places < 0).any()
            or (self._places.sum(axis=2) > sizes[self._shards, None]).any()
            or (self._places[:, :2, 1] != (grid, CELLS * 2)).any()
        ):
            raise UserError(
                f"{self.folder}/index.json: damaged (its places do not fit its shards); run `dvc repro -f shard`"
            )
