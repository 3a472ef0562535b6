"""Shards: what is in them, what survives a kill or a full disk, and who reads which sample when."""

import io
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from waiting import HOLD, held, kill

from diptych.features.codebook.reading import CODES
from diptych.features.errors import UserError
from diptych.features.files import sha256_of
from diptych.features.manifest import read_manifest, write_manifest
from diptych.features.order import batch_indices
from diptych.features.shards import stream as stream_module
from diptych.features.shards import writing
from diptych.features.shards.index import MEMBERS
from diptych.features.shards.reading import ShardDataset
from diptych.features.shards.stream import ShardStream
from diptych.features.shards.writing import write_shards
from diptych.features.store import grid_values, write_part

COUNT, DIM, SHARD_SIZE = 26, 16, 4


def make_inputs(folder: Path, count: int = COUNT) -> Path:
    """Pictures (PNG and JPEG), their manifest, features in parts of ten and codes, all from fixed seeds."""
    rng = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True)
    (folder / "codebook").mkdir()
    rows = []
    for number in range(count):
        path = folder / f"{number}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(path)
        rows.append(
            {
                "image_id": f"image-{number:03d}",
                "split": "val" if number % 5 == 4 else "train",
                "path": path.name,
                "width": 10,
                "height": 12,
                "sha256": sha256_of(path),
                "captions": [f"caption {number} .", "a kite ."],
                "objects": [{"bbox": [0, 0, 5, 5], "label": "kite", "attributes": ["red"]}],
            }
        )
    write_manifest(rows, folder / "manifest.parquet")
    ids, sha256s = [row["image_id"] for row in rows], [row["sha256"] for row in rows]
    features = rng.standard_normal((count, 64, DIM)).astype(np.float16)
    (folder / "features/_meta.json").write_text(json.dumps({"feature_dim": DIM, "detector": "noise"}))
    for part, first in enumerate(range(0, count, 10)):
        some = slice(first, first + 10)
        path = folder / f"features/part-{part:06d}.parquet"
        write_part(path, grid_values(DIM), ids[some], sha256s[some], features[some])
    codes = [row.astype("<u2").tobytes() for row in rng.integers(0, 60_000, (count, 64))]
    pq.write_table(pa.table([ids, sha256s, codes], schema=CODES), folder / "codebook/codes.parquet")
    return folder


def write(inputs: Path, out: Path, shard_size: int = SHARD_SIZE) -> dict[str, int]:
    manifest = inputs / "manifest.parquet"
    return write_shards(
        read_manifest(manifest), manifest, inputs / "features", inputs / "codebook", out, shard_size
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """inode and time of every tar: another one was written anew."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(scope="module")
def shards(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    assert write(inputs, folder) == {"train": 21, "val": 5}
    return folder


# What is written


def test_the_index_is_true_of_the_tars(shards: Path) -> None:
    """Counts, sizes, sums and offsets against the files themselves, read by tarfile."""
    index = json.loads((shards / "index.json").read_text())
    names = {shard["name"] for entries in index["splits"].values() for shard in entries}
    assert {path.name for path in shards.iterdir()} == names | {"index.json"}
    for split, entries in index["splits"].items():
        assert [shard["count"] for shard in entries] == ([4] * 5 + [1] if split == "train" else [4, 1])
        for shard in entries:
            path = shards / shard["name"]
            raw = path.read_bytes()
            assert (shard["size"], shard["sha256"]) == (len(raw), sha256_of(path))
            assert len(shard["keys"]) == shard["count"]
            with tarfile.open(path) as tar:
                expected = [
                    f"{key}.{m}" for key in shard["keys"] for m in ("grid.npy", "codes.npy", "json", "jpg")
                ]
                assert tar.getnames() == expected
                for key, members in zip(shard["keys"], shard["members"], strict=True):
                    for name, (offset, length) in zip(MEMBERS, members, strict=True):
                        file = tar.extractfile(f"{key}.{name}")
                        assert file is not None
                        whole = file.read()
                        if name.endswith("npy"):
                            whole = np.load(io.BytesIO(whole)).tobytes()
                        assert raw[offset : offset + length] == whole


def test_any_webdataset_reader_reads_what_ours_reads(shards: Path, inputs: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    rows = {row["image_id"]: row for row in read_manifest(inputs / "manifest.parquet").to_pylist()}
    for split in ("train", "val"):
        ours = ShardDataset(shards, split)
        names = sorted(str(path) for path in shards.glob(f"{split}-*.tar"))
        theirs = list(webdataset.WebDataset(names, shardshuffle=False).decode())
        assert [sample["__key__"] for sample in theirs] == ours.keys
        for index, sample in enumerate(theirs):
            np.testing.assert_array_equal(sample["grid.npy"], ours.grid([index])[0])
            np.testing.assert_array_equal(sample["codes.npy"], ours.codes([index])[0])
            row = rows[ours.keys[index]]
            assert sample["json"] == ours.meta(index) == {name: row[name] for name in sample["json"]}
        everything = range(len(ours))
        assert ours.grid_tensor(everything).dtype == torch.float32
        np.testing.assert_array_equal(
            ours.grid_tensor(everything).numpy(), ours.grid(everything).astype(np.float32)
        )


def test_a_jpeg_stays_the_files_own_bytes(shards: Path, inputs: Path) -> None:
    data = ShardDataset(shards, "train")
    for index, key in enumerate(data.keys):
        number = int(key.removeprefix("image-"))
        own = (inputs / f"{number}.{'png' if number % 2 else 'jpg'}").read_bytes()
        assert (data.image_bytes(index) == own) == (number % 2 == 0)
        assert data.image_bytes(index)[:2] == b"\xff\xd8"


# What survives

HELD = """
import sys
from pathlib import Path
from diptych.features.shards import writing
from diptych.features.manifest import read_manifest
real = writing._add_members
inputs, out = map(Path, sys.argv[1:])
def add_and_wait(*arguments):
    result = real(*arguments)
    if len(list(out.glob("*.tar.record"))) >= 3 and list(out.glob(".*.tar.*")):
        HOLD
    return result
writing._add_members = add_and_wait
m = inputs / "manifest.parquet"
writing.write_shards(read_manifest(m), m, inputs / "features", inputs / "codebook", out, 4)
""".replace("HOLD", HOLD)


def test_a_killed_run_goes_on_with_the_shards_that_lack(inputs: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill(held(HELD, inputs, out))
    kept = stamps(out)
    assert 3 <= len(kept) < 8 and not (out / "index.json").exists()
    assert list(out.glob(".*.tar.*")), "the kill left a tar half-written"
    write(inputs, out)
    assert {name: stamp for name, stamp in stamps(out).items() if name in kept} == kept
    assert content(out) == content(shards)


@pytest.mark.parametrize("change", ["caption", "features", "codes", "another size"])
def test_shards_made_from_something_else_are_not_kept(change: str, inputs: Path, tmp_path: Path) -> None:
    """A run that was stopped before its index: the records of all eight shards lie there."""
    changed, out, fresh = tmp_path / "inputs", tmp_path / "out", tmp_path / "fresh"
    shutil.copytree(inputs, changed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "sha256_of", Dying(8))
        with pytest.raises(InterruptedError):
            write(changed, out)
    before = stamps(out)
    assert len(before) == 7
    if change == "caption":
        rows = read_manifest(changed / "manifest.parquet").to_pylist()
        rows[0]["captions"] = ["another ."]
        write_manifest(rows, changed / "manifest.parquet")
    elif change == "features":
        (changed / "features/_meta.json").write_text(json.dumps({"feature_dim": DIM, "detector": "other"}))
    elif change == "codes":
        table = pq.read_table(changed / "codebook/codes.parquet")
        codes = [bytes(128), *table["codes"].to_pylist()[1:]]
        pq.write_table(
            table.set_column(2, CODES.field("codes"), pa.array(codes, CODES.field("codes").type)),
            changed / "codebook/codes.parquet",
        )
    size = 3 if change == "another size" else SHARD_SIZE
    write(changed, out, size)
    write(changed, fresh, size)
    assert content(out) == content(fresh)
    same = {name for name, stamp in stamps(out).items() if before.get(name) == stamp}
    if change in ("caption", "codes"):
        assert same == set(before) - {"train-000000.tar"}
    else:
        assert same == set()


class Dying:
    """sha256_of, until the given call, which ends the run."""

    def __init__(self, call: int) -> None:
        self.calls, self.last = 0, call

    def __call__(self, path: Path) -> str:
        self.calls += 1
        if self.calls == self.last:
            raise InterruptedError
        return sha256_of(path)


FULL = """
import sys, subprocess
from pathlib import Path
from diptych.features.shards import writing
from diptych.features.errors import UserError
from diptych.features.manifest import read_manifest
inputs, disk = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=True)
m = inputs / "manifest.parquet"
arguments = (read_manifest(m), m, inputs / "features", inputs / "codebook", disk / "out", 4)
try:
    writing.write_shards(*arguments)
except UserError as error:
    print(error)
print(sorted(path.name for path in (disk / "out").iterdir()))
subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
print(writing.write_shards(*arguments))
print(*sorted(f"{p.name} {writing.sha256_of(p)}" for p in (disk / "out").iterdir()), sep="\\n")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="a small disk of its own needs util-linux")
def test_a_full_disk_is_named_and_leaves_whole_shards(inputs: Path, shards: Path, tmp_path: Path) -> None:
    """On a real file system that is full, mounted in a namespace of its own."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    (tmp_path / "disk").mkdir()
    probe = subprocess.run(
        [*unshare, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr.decode().strip()}")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", FULL, str(inputs), str(tmp_path / "disk")],
        capture_output=True,
        text=True,
        check=True,
    )
    message, left, counts, *files = done.stdout.splitlines()
    assert "the disk is full after" in message and "of 26 samples; free some space" in message
    names = json.loads(left.replace("'", '"'))
    tars = [name for name in names if name.endswith(".tar")]
    assert 0 < len(tars) < 8 and names == sorted([*tars, *(f"{name}.record" for name in tars)])
    assert counts == "{'train': 21, 'val': 5}"
    assert files == sorted(f"{path.name} {sha256_of(path)}" for path in shards.iterdir())


def test_a_picture_that_was_exchanged_is_named(inputs: Path, tmp_path: Path) -> None:
    changed = tmp_path / "inputs"
    shutil.copytree(inputs, changed)
    shutil.copy(changed / "2.jpg", changed / "6.jpg")
    with pytest.raises(UserError, match=r"6\.jpg: not the image whose features were made"):
        write(changed, tmp_path / "out")
    assert not (tmp_path / "out/index.json").exists()


# What is refused before training starts


def test_missing_truncated_and_altered_shards_are_named(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    ShardDataset(copy, "train", verify=True)
    altered = bytearray((copy / "train-000003.tar").read_bytes())
    altered[5000] ^= 1
    (copy / "train-000003.tar").write_bytes(altered)
    data = ShardDataset(copy, "train")  # as long as it was: only its sum tells
    with pytest.raises(UserError, match=r"sha256 of 1 of 6 shards differs.*train-000003\.tar"):
        data.verify()
    with pytest.raises(UserError, match=r"train-000003\.tar"):
        ShardDataset(copy, "train", verify=True)
    ShardDataset(copy, "val", verify=True)
    (copy / "train-000003.tar").write_bytes(altered[:-512])
    with pytest.raises(
        UserError, match=rf"train-000003\.tar: {len(altered) - 512} bytes instead of {len(altered)}"
    ):
        ShardDataset(copy, "train")
    with pytest.raises(UserError, match=r"train-000003\.tar"):
        pickle.loads(pickle.dumps(data))  # a worker that starts later finds out, too
    (copy / "train-000003.tar").unlink()
    with pytest.raises(UserError, match=r"train-000003\.tar: the shard is missing"):
        ShardDataset(copy, "train")


@pytest.mark.parametrize("damage", ["offset", "cut", "list", "other dimension", "version"])
def test_a_damaged_index_is_refused(damage: str, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    index = json.loads((copy / "index.json").read_text())
    words = "damaged"
    if damage == "offset":
        index["splits"]["train"][1]["members"][2][3][0] += 10**6
    elif damage == "other dimension":
        index["feature_dim"] += 1
    elif damage == "version":
        index["version"], words = 7, "version 7"
    elif damage == "list":
        index = [1]
    text = json.dumps(index)
    (copy / "index.json").write_text(text[: len(text) // 2] if damage == "cut" else text)
    with pytest.raises(UserError, match=rf"index\.json: {words}"):
        ShardDataset(copy, "train")


def test_many_shards_hold_no_files_open(shards: Path) -> None:
    """More shards than files may be open, each read."""
    files = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files + 12, hard))
    try:
        datasets = [ShardDataset(shards, "train") for _ in range(10)]  # 60 maps
        assert all(data.grid(range(21)).shape == (21, 64, DIM) for data in datasets)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == files


# Who reads what when


class Keys:
    """As much of a ShardDataset as an order needs."""

    folder, split = Path("shards"), "train"

    def __init__(self, count: int) -> None:
        self.keys = [f"k{number}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.keys)


def delivered(stream: ShardStream, workers: int) -> Iterator[dict]:
    """What a DataLoader with `workers` hands out, in its order: it asks the workers in turn."""
    if not workers:
        yield from stream
        return
    streams = []
    for worker in range(workers):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                stream_module, "get_worker_info", lambda w=worker: SimpleNamespace(id=w, num_workers=workers)
            )
            streams.append(iter(list(stream)))
    while streams:
        for own in list(streams):
            batch = next(own, None)
            if batch is None:
                streams.remove(own)
            else:
                yield batch


def walk(count: int, batch_size: int, ranks: int, workers: int, start: int, stop: int) -> list[list[str]]:
    """The keys of each step from start to stop, all ranks together."""
    steps: list[list[str]] = [[] for _ in range(start, stop)]
    for rank in range(ranks):
        stream = ShardStream(Keys(count), batch_size, 7, rank, ranks, start, stop, members=())  # type: ignore[arg-type]
        assert len(stream) == stop - start
        batches = list(delivered(stream, workers))
        assert [batch["step"] for batch in batches] == list(range(start, stop)), "no rank makes fewer steps"
        for step, batch in zip(steps, batches, strict=True):
            assert len(batch["keys"]) == batch_size // ranks, "no rank's batch is smaller"
            step += batch["keys"]
    return steps


@pytest.mark.parametrize("count", [1, 5, 12, 13])
@pytest.mark.parametrize("share", [1, 3])
def test_every_key_once_an_epoch_whoever_reads(count: int, share: int) -> None:
    """All ranks x workers x resume points over three epochs; before and after the resume ranks and workers differ.

    12 is a batch's multiple, 1 and 5 are less than some batches, 13 divides by nothing.
    """
    ranks_of = {1: (1,), 2: (1, 2), 3: (1, 3), 4: (1, 2, 4)}
    for ranks in (1, 2, 3, 4):
        batch_size = ranks * share
        stop = math.ceil(3 * count / batch_size)
        undisturbed = walk(count, batch_size, ranks, 0, 0, stop)
        seen = [key for step in undisturbed for key in step]
        for epoch in range(3):
            assert sorted(seen[epoch * count : (epoch + 1) * count]) == sorted(Keys(count).keys)
        if count > 5:
            assert seen[:count] != seen[count : 2 * count], "another epoch, another order"
        for workers in (1, 2, 3, 5):
            assert walk(count, batch_size, ranks, workers, 0, stop) == undisturbed
        for resumed in range(stop + 1):
            before = walk(count, batch_size, ranks, 2, 0, resumed)
            for other in ranks_of[ranks]:
                assert before + walk(count, batch_size, other, 3, resumed, stop) == undisturbed


def test_the_order_is_that_of_the_training_loops() -> None:
    stream = ShardStream(Keys(13), 4, seed=3, rank=1, world_size=2, members=())  # type: ignore[arg-type]
    expected = [f"k{i}" for i in batch_indices(13, 4, 3, 5)[2:]]
    assert stream.batch(5)["keys"] == expected
    with pytest.raises(TypeError):
        len(stream)
    with pytest.raises(ValueError):
        batch_indices(13, 4, 3, 5, 0, 3)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_deliver_every_sample_once(context: str, inputs: Path, tmp_path: Path) -> None:
    """One shard, two DataLoader workers in processes of their own: the partition is by sample, not by shard."""
    assert write(inputs, tmp_path, shard_size=100) == {"train": 21, "val": 5}
    data = ShardDataset(tmp_path, "train")
    stream = ShardStream(data, 6, 0, start=0, stop=7, members=("grid", "codes", "captions", "meta", "jpg"))
    alone = list(stream)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context)
    together = list(loader)
    assert sorted(key for batch in together for key in batch["keys"]) == sorted(data.keys * 2)
    for one, other in zip(alone, together, strict=True):
        assert [one[n] for n in ("step", "keys", "captions", "meta", "jpg")] == [
            other[n] for n in ("step", "keys", "captions", "meta", "jpg")
        ]
        assert torch.equal(one["grid"], other["grid"]) and one["grid"].shape == (6, 64, DIM)
        assert torch.equal(one["codes"], other["codes"])
    places = [data.keys.index(key) for key in alone[2]["keys"]]
    np.testing.assert_array_equal(alone[2]["grid"].numpy(), data.grid(places).astype(np.float32))
    half = ShardStream(data, 6, 0, members=("grid",), grid_type=torch.float16)
    assert torch.equal(half.batch(2)["grid"].float(), alone[2]["grid"])


def test_datasets_travel_to_ray(shards: Path) -> None:
    """Ray's own pickling: the index goes along, what is mapped does not."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    data = ShardDataset(shards, "train")
    packed = cloudpickle.dumps(data)
    assert len(packed) < 0.1 * sum(path.stat().st_size for path in shards.glob("train-*.tar"))
    np.testing.assert_array_equal(cloudpickle.loads(packed).grid([20, 3]), data.grid([20, 3]))


def test_a_resumed_stream_goes_on_with_the_next_step_or_says_why_not(shards: Path) -> None:
    data = ShardDataset(shards, "train")

    def stream(**changes: int) -> ShardStream:
        return ShardStream(data, **{"batch_size": 4, "seed": 0, "stop": 12, **changes}, members=())

    first = stream()
    keys = [batch["keys"] for batch in first]
    state = json.loads(json.dumps(first.state(5)))
    halves = [stream(rank=rank, world_size=2) for rank in range(2)]
    for half in halves:
        half.resume(state)
    assert [a["keys"] + b["keys"] for a, b in zip(*halves, strict=True)] == keys[5:]
    for changes, words in (({"seed": 1}, "seed"), ({"batch_size": 8}, "batch_size")):
        with pytest.raises(UserError, match=rf"another order of samples \({words} differ\)"):
            stream(**changes).resume(state)
    with pytest.raises(UserError, match=r"keys differ"):
        ShardStream(ShardDataset(shards, "val"), 4, 0, members=()).resume(state)


def test_what_cannot_be_shared_is_refused_with_the_arithmetic(shards: Path) -> None:
    data = ShardDataset(shards, "val")
    with pytest.raises(UserError, match=r"batch_size 100 .* among 3 ranks; .* 33 x 3 = 99"):
        ShardStream(data, 100, 0, rank=2, world_size=3)
    with pytest.raises(UserError, match=r"batch_size 2 .* among 3 ranks; .* 1 x 3 = 3"):
        ShardStream(data, 2, 0, rank=2, world_size=3)
    with pytest.raises(UserError, match="split 'train' has no sample"):
        ShardStream(Keys(0), 2, 0)  # type: ignore[arg-type]
    for arguments in ({"rank": 2, "world_size": 2}, {"members": ("grids",)}):
        with pytest.raises(ValueError):
            ShardStream(data, 2, 0, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("imported", "unneeded"),
    [
        ("writing", {"shards.reading", "shards.stream", "order"}),
        ("reading", {"shards.writing", "shards.stream", "codebook", "store", "manifest"}),
    ],
)
def test_a_stage_that_writes_needs_no_reader_and_the_reverse(imported: str, unneeded: set[str]) -> None:
    """Or a change of the one would run the stages of the other again."""
    script = f"import sys, diptych.features.shards.{imported}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {f"diptych.features.{name}" for name in unneeded} & {*done.stdout.split()}
