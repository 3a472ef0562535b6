"""Which pictures are measured: a part of some splits, drawn by the seed. It imports nothing heavy, as tables' parameters are read
before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diptych.features.ranges import check_at_least


@dataclass(frozen=True)
class Sample:
    """Pictures of some splits: all of them, or `limit`, drawn by the seed from all splits together."""

    splits: tuple[str, ...]
    limit: int | None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit")
        if not self.splits:
            raise ValueError("splits: name at least one")


def draw(sample: Sample, keys: Mapping[str, Sequence[str]], seed: int) -> set[str]:
    """The ids of a sample's pictures; `keys` has those of every split.

    Each picture draws its place from the seed and its own id. So the same are drawn from the same pictures however
    they are divided into splits, and where one of them is missing, one other comes in for it.
    """

    def place(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}/{image_id}".encode()).digest()

    candidates = [key for split in sample.splits for key in keys[split]]
    return set(candidates if sample.limit is None else sorted(candidates, key=place)[: sample.limit])
