"""Shards at an address: the same samples as here, once each over the wire, through bad connections, in a bounded cache."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from diskcache import Cache
from fsspec.implementations.memory import MemoryFileSystem

from diptych.features import addresses
from diptych.features.addresses import Elsewhere
from diptych.features.errors import UserError
from diptych.features.shards.publishing import publish_shards
from diptych.features.shards.reading import ShardDataset
from diptych.features.shards.stream import ShardStream


@pytest.fixture
def there(shards: Path) -> str:
    """The shards in memory, published."""
    MemoryFileSystem.store.clear()
    address = "memory://bucket/shards"
    publish_shards(shards, address)
    return address


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each range was read."""
    seen: Counter = Counter()
    read = MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **rest):
        seen[path.rpartition("/")[2], start] += 1
        return read(self, path, start, end, **rest)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return seen


def same(one: ShardDataset, other: ShardDataset) -> None:
    indices = list(range(len(one)))[::-1]
    assert one.keys == other.keys
    np.testing.assert_array_equal(one.grid(indices), other.grid(indices))
    np.testing.assert_array_equal(one.grid_tensor(indices), other.grid_tensor(indices))
    np.testing.assert_array_equal(one.codes(indices), other.codes(indices))
    assert [one.meta(index) for index in indices] == [other.meta(index) for index in indices]
    assert [one.image_bytes(index) for index in indices] == [other.image_bytes(index) for index in indices]


def test_an_address_has_the_same_samples(shards: Path, there: str, tmp_path: Path, wire: Counter) -> None:
    here = ShardDataset(shards, "train")
    for _ in range(2):
        same(ShardDataset(there, "train", cache=tmp_path / "cache"), here)
    ranges = {place: count for place, count in wire.items() if place[0] != "index.json"}
    # features and codes of a sample in one range, its texts and its picture in others, each once for all processes and times
    assert len(ranges) == 3 * len(here) and set(ranges.values()) == {1}
    copied = tmp_path / "copied"
    shutil.copytree(shards, copied)
    same(ShardDataset(f"file://{copied}", "train", cache=tmp_path / "other"), here)


def test_it_travels_and_streams(shards: Path, there: str, tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(ShardDataset(there, "train", cache=tmp_path / "cache")))
    ours, local = (ShardStream(each, 4, seed=1, stop=3) for each in (dataset, ShardDataset(shards, "train")))
    for mine, wanted in zip(ours, local, strict=True):
        assert mine["keys"] == wanted["keys"] and mine["grid"].equal(wanted["grid"])


def test_a_bad_connection_loses_and_repeats_nothing(
    shards: Path, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is asked for, each first request fails, each second brings half of the bytes, and each third fails again.

    Counted for each range alone: connections are asked side by side, and by a common count all tries of one may be those that fail.
    """
    monkeypatch.setattr(addresses, "FIRST_WAIT", 0.001)
    read, tries = MemoryFileSystem.cat_file, Counter()

    def unreliable(self, path, start=None, end=None, **rest):
        tries[path, start] += 1
        if tries[path, start] in (1, 3):
            raise ConnectionResetError("reset by peer")
        found = read(self, path, start, end, **rest)
        return found[: len(found) // 2] if start is not None and tries[path, start] == 2 else found

    monkeypatch.setattr(MemoryFileSystem, "cat_file", unreliable)
    same(ShardDataset(there, "train", cache=tmp_path / "cache"), ShardDataset(shards, "train"))


def test_a_dead_connection_ends_in_one_message(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "FIRST_WAIT", 0.001)
    dataset = ShardDataset(there, "train", cache=tmp_path / "cache")

    def dead(self, path, **rest):
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", dead)
    with pytest.raises(UserError, match=r"train-.*tar: 6 tries failed, the last by TimeoutError \(no answer\)"):
        dataset.grid([0])


def test_the_cache_stays_within_its_bound(there: str, tmp_path: Path) -> None:
    bound = 2**16
    dataset = ShardDataset(there, "train", cache=tmp_path / "cache", cache_bytes=bound)
    for index in range(len(dataset)):
        dataset.grid([index])
        dataset.image_bytes(index)
    kept = Cache(str(tmp_path / "cache"))
    assert 0 < len(kept) < 2 * len(dataset) and kept.volume() < 2 * bound


def test_what_is_not_there_is_said(there: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory://nowhere/index.json: there is no such file"):
        ShardDataset("memory://nowhere", "train")
    with pytest.raises(UserError, match="no such kind of address|Protocol not known"):
        Elsewhere("nosuch://bucket").read("index.json")
    with fsspec.open(f"{there}/index.json", "w") as file:
        file.write("{")
    with pytest.raises(UserError, match=r"memory://.*index\.json: damaged .*write the shards there again"):
        ShardDataset(there, "train")


def test_publishing_goes_on_where_it_was_and_replaces_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryFileSystem.store.clear()
    address, put, sent = "memory://bucket/again", MemoryFileSystem.put_file, []

    def broken(self, local, path, *rest, **others):
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(path)
        return put(self, local, path, *rest, **others)

    monkeypatch.setattr(MemoryFileSystem, "put_file", broken)
    with pytest.raises(KeyboardInterrupt):
        publish_shards(shards, address)
    with pytest.raises(UserError, match="index.json: there is no such file"):
        ShardDataset(address, "train")  # no index before all shards are there
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda self, local, path, *rest, **others: (sent.append(path), put(self, local, path, *rest, **others)))
    counts = publish_shards(shards, address)
    names = {shard["name"] for parts in json.loads((shards / "index.json").read_text())["splits"].values() for shard in parts}
    assert len(sent) == len(set(sent)) == len(names) and counts == {"written": len(names) - 1, "there": 1}
    assert publish_shards(shards, address) == {"written": 0, "there": len(names)}
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    index = json.loads((other / "index.json").read_text())
    next(iter(index["splits"].values()))[0]["sha256"] = "0" * 64
    (other / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="other shards are there already; publish to another address"):
        publish_shards(other, address)
