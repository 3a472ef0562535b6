"""Where stages read shards from: data/shards, or the address that `machine.shards` names."""

from __future__ import annotations

from pathlib import Path

from diptych.features.addresses import Elsewhere
from diptych.features.errors import UserError
from diptych.features.shards.reading import ShardDataset
from pipelines.runner.params import Machine, read_params, read_section

SHARDS = Path("data/shards")


def shards_of(split: str) -> ShardDataset:
    """The samples of a split. The index is here in any case: it is what stages depend on. Raises UserError where the address has other
    shards, and as `ShardDataset` does."""
    machine = read_section(Machine, "machine", read_params())
    if machine.shards is None:
        return ShardDataset(SHARDS, split)
    index = SHARDS / "index.json"
    if not index.is_file() or Elsewhere(machine.shards).read(index.name) != index.read_bytes():
        raise UserError(
            f"machine.shards: {machine.shards} has other shards than {index}; publish these there, or bring the index that belongs to them"
        )
    return ShardDataset(machine.shards, split, cache=Path(machine.shards_cache))
