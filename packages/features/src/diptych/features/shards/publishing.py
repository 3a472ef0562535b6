"""Copying shards to an address, where others read them without a copy of their own."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from diptych.features.addresses import Elsewhere
from diptych.features.errors import UserError
from diptych.features.files import sha256_of
from diptych.features.shards.index import read_index


def publish_shards(folder: Path, address: str) -> dict[str, int]:
    """Copy the shards of `folder` to `address`, one after the other, the index last: who reads there sees all of them or none.

    A run that was stopped goes on: each shard that is there leaves its sha256 beside it. Returns counts: written, there.
    Raises UserError where other shards are there already, as who reads them now would find others in their places.
    """
    index, elsewhere = read_index(folder), Elsewhere(address)
    shards = [shard for several in index["splits"].values() for shard in several]
    content = (Path(folder) / "index.json").read_bytes()
    if elsewhere.size("index.json") is not None:
        if elsewhere.read("index.json") != content:
            raise UserError(f"{address}: other shards are there already; publish to another address")
        return {"written": 0, "there": len(shards)}
    written = 0
    for shard in tqdm(shards, desc="publish", unit="shard", mininterval=1):
        name, mark = shard["name"], f"{shard['name']}.sha256"
        if elsewhere.size(mark) is not None and elsewhere.read(mark).decode() == shard["sha256"]:
            continue
        local = Path(folder) / name
        if sha256_of(local) != shard["sha256"]:
            raise UserError(
                f"{local}: damaged (its sha256 is not the index's); remove it and `dvc checkout`, or run `dvc repro -f shard`"
            )
        elsewhere.write_bytes(mark, b"")  # of another version, that was left unfinished
        elsewhere.write(name, str(local))
        elsewhere.write_bytes(mark, shard["sha256"].encode())
        written += 1
    elsewhere.write_bytes("index.json", content)
    return {"written": written, "there": len(shards) - written}
