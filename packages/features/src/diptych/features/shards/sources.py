"""Where the bytes of shards come from: files that are here, mapped into memory, or an address, read sample by sample through a cache."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.features.addresses import Elsewhere
from diptych.features.errors import UserError
from diptych.features.shards.index import CODES, GRID, JPG, JSON

CACHE_BYTES = 16 * 2**30
CONNECTIONS = 8  # at a time
# members that are fetched together: features and codes; texts and pictures alone, as a training reads all texts before it begins
_TOGETHER = {GRID: (GRID, CODES), CODES: (GRID, CODES), JSON: (JSON, JSON), JPG: (JPG, JPG)}

File = tuple[str, int, str]
"""Name, size and sha256 of a shard."""


class LocalShards:
    """Files of a folder, mapped. It holds none open, and travels: the files are mapped again there.

    By torch, which leaves no file open and reads nothing yet: Python's mmap keeps each file open, Arrow's asks the system to read
    all of it at once. Raises UserError for a shard that is missing or not as long as the index says.
    """

    def __init__(self, folder: Path, files: Sequence[File]) -> None:
        self.folder, self.files = folder, files
        self._maps = self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def member(self, shard: int, places: np.ndarray, member: int) -> np.ndarray:
        offset, length = places[member].tolist()
        return self._maps[shard][offset : offset + length]

    def _map(self) -> list[np.ndarray]:
        maps = []
        for name, size, _ in self.files:
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


class RemoteShards:
    """Shards at an address: of each sample the range that its members take, once, into a cache on disk.

    The cache is shared by all processes of a machine and keyed by the shards' sha256, so that other shards of the same names
    are others; it stays below `cache_bytes` by forgetting what was used least recently.
    """

    def __init__(
        self, address: str, files: Sequence[File], cache: Path, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.elsewhere, self.files = Elsewhere(address), files
        self.cache, self.cache_bytes = cache, cache_bytes
        self._kept: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def prepare(self, samples: Sequence[tuple[int, np.ndarray]], member: int) -> None:
        """Fetch ranges that the cache lacks, several at a time."""
        missing = [(shard, places) for shard, places in samples if not self.has(shard, places, member)]
        if len(missing) > 1:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(lambda sample: self._range(sample[0], sample[1], member), missing))

    def has(self, shard: int, places: np.ndarray, member: int) -> bool:
        """Whether a member is in the cache."""
        return self._key(shard, places, member) in self._store()

    def member(self, shard: int, places: np.ndarray, member: int) -> np.ndarray:
        start, _ = self._ends(places, member)
        offset, length = places[member].tolist()
        # writable, as torch warns of arrays that are not
        found = np.frombuffer(bytearray(self._range(shard, places, member)), np.uint8)
        return found[offset - start : offset - start + length]

    def _range(self, shard: int, places: np.ndarray, member: int) -> bytes:
        key = self._key(shard, places, member)
        found = self._store().get(key)
        if found is None:
            found = self.elsewhere.read_range(self.files[shard][0], *self._ends(places, member))
            self._store().set(key, found)
        return found

    def _ends(self, places: np.ndarray, member: int) -> tuple[int, int]:
        """Where the range begins and ends that has a member and those fetched with it."""
        first, last = _TOGETHER[member]
        return int(places[first, 0]), int(places[last].sum())

    def _key(self, shard: int, places: np.ndarray, member: int) -> str:
        return f"{self.files[shard][2]}/{self._ends(places, member)[0]}"

    def _store(self) -> Any:
        if self._kept is None:
            try:
                from diskcache import Cache
            except ImportError:
                raise UserError(
                    f"{self.elsewhere}: reading shards there needs diskcache: pip install 'diptych-features[remote]'"
                ) from None
            # values are bytes and keys are text, which it stores as they are
            self._kept = Cache(
                str(self.cache), size_limit=self.cache_bytes, eviction_policy="least-recently-used"
            )
        return self._kept
