"""Shards and stores in object storage, through s3fs, on a server that fails: nothing is lost, repeated or sent twice."""

from __future__ import annotations

import filecmp
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction import make_dataset
from object_storage import ObjectStorage, OftenFailing, Request, serve
from test_pictures import CONFIG, FakeTokenizer
from test_remote_shards import same

from diptych.features import addresses, store_elsewhere
from diptych.features.addresses import Elsewhere
from diptych.features.detector import Detector, DetectorConfig, save_detector
from diptych.features.errors import UserError
from diptych.features.extraction.encoder import DetectorLoader
from diptych.features.extraction.extract import encode_images
from diptych.features.manifest import read_manifest
from diptych.features.shards.publishing import publish_shards
from diptych.features.shards.reading import ShardDataset
from diptych.features.store import FeatureReader, FeatureStore
from diptych.features.store_elsewhere import bring_parts, publish_parts

META = {"feature_dim": 4, "detector": "noise"}
IMAGES = [f"{number:064x}" for number in range(60)]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStorage]:
    with serve() as storage:
        yield storage


@pytest.fixture
def storage(server: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    """The server, sound and with nothing asked of it yet; waits are short."""
    monkeypatch.setattr(addresses, "FIRST_WAIT", 0.001)
    server.requests.clear()
    yield server
    server.fault = None


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """An address that no other test has."""
    return f"s3://bucket/{request.node.name}"


def hits(storage: ObjectStorage, method: str, ending: str) -> Counter:
    """How often each file of an ending was asked for, by its name."""
    return Counter(key.rpartition("/")[2] for key in storage.keys(method) if key.endswith(ending))


# Shards


def test_shards_come_back_as_they_were(
    shards: Path, storage: ObjectStorage, address: str, tmp_path: Path
) -> None:
    publish_shards(shards, address)
    for split in ("train", "val"):
        here = ShardDataset(shards, split)
        for _ in range(2):
            same(ShardDataset(address, split, cache=tmp_path / "cache"), here)
    ranges = Counter((each.path, each.range) for each in storage.requests if each.method == "GET" and each.range)
    # three ranges of each of the 26 samples, each once
    assert len(ranges) == 3 * 26 and set(ranges.values()) == {1}


def test_a_server_that_fails_loses_and_repeats_nothing(
    shards: Path, storage: ObjectStorage, address: str, tmp_path: Path
) -> None:
    storage.fault = writing = OftenFailing()
    counts = publish_shards(shards, address)
    names = {path.name for path in shards.glob("*.tar")}
    assert writing.failed >= 2 and counts == {"written": len(names), "there": 0}
    assert set(hits(storage, "PUT", ".tar")) == names
    storage.fault = reading = OftenFailing()
    same(ShardDataset(address, "train", cache=tmp_path / "cache"), ShardDataset(shards, "train"))
    assert reading.failed >= 8


PUBLISH = "import sys; from pathlib import Path; from diptych.features.shards.publishing import publish_shards; publish_shards(Path(sys.argv[1]), sys.argv[2])"


def test_a_killed_publication_goes_on(
    shards: Path, storage: ObjectStorage, address: str, tmp_path: Path
) -> None:
    """SIGKILL while the third shard is on its way."""
    started, ended = threading.Event(), threading.Event()

    def hold(request: Request) -> str | None:
        if request.method == "PUT" and sum(key.endswith(".tar") for key in storage.keys("PUT")) == 3:
            started.set()
            ended.wait(60)
            return "reset"
        return None

    storage.fault = hold
    process = subprocess.Popen([sys.executable, "-c", PUBLISH, str(shards), address], stderr=subprocess.DEVNULL)
    try:
        assert started.wait(60), "the third shard was never sent"
    finally:
        process.kill()
        process.wait()
        ended.set()
    storage.fault = None
    with pytest.raises(UserError, match=r"index\.json: there is no such file"):
        ShardDataset(address, "train")
    first = set(hits(storage, "PUT", ".tar"))
    storage.requests.clear()
    names = {path.name for path in shards.glob("*.tar")}
    assert publish_shards(shards, address) == {"written": len(names) - 2, "there": 2}
    assert len(first) == 3 and hits(storage, "PUT", ".tar") == Counter(names - set(sorted(first)[:2]))
    same(ShardDataset(address, "val", cache=tmp_path / "cache"), ShardDataset(shards, "val"))


# What s3fs says and keeps


def test_a_fork_connects_anew(storage: ObjectStorage, address: str) -> None:
    """As a DataLoader's workers do, after their parent has read."""
    elsewhere = Elsewhere(address)
    elsewhere.write_bytes("file", b"content")
    assert elsewhere.read("file") == b"content"
    child = multiprocessing.get_context("fork").Process(target=_read_and_leave, args=(elsewhere,))
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == 0


def _read_and_leave(elsewhere: Elsewhere) -> None:
    os._exit(0 if elsewhere.read("file") == b"content" else 1)


def test_what_others_write_is_seen(storage: ObjectStorage, address: str) -> None:
    elsewhere = Elsewhere(address)
    assert elsewhere.names() == []
    elsewhere.write_bytes("one", b"1")
    assert elsewhere.names() == ["one"] and elsewhere.size("two") is None
    program = "import sys, fsspec; fsspec.filesystem('s3').pipe_file(sys.argv[1], b'22')"
    subprocess.run([sys.executable, "-c", program, f"{address}/two"], check=True)
    assert elsewhere.size("two") == 2 and elsewhere.names() == ["one", "two"]


def test_what_no_try_mends_ends_at_once(storage: ObjectStorage, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Elsewhere("s3://nobucket/folder")
    for ask in (lambda: nowhere.read("file"), lambda: nowhere.size("file"), nowhere.names, lambda: nowhere.write_bytes("file", b"")):
        with pytest.raises(UserError, match=r"s3://nobucket/folder\S*: The specified bucket does not exist"):
            ask()
    with pytest.raises(UserError, match=r"s3://b u/file: ParamValidationError: .*Invalid bucket name"):
        Elsewhere("s3://b u").read("file")
    there = Elsewhere(address)
    for code, message in (
        ("AccessDenied", r"file: access is refused \(Access Denied\); look at your keys"),
        ("AuthorizationHeaderMalformed", r"file: OSError: .*expecting 'eu-west-1'"),
    ):
        storage.fault = lambda request, code=code: code
        storage.requests.clear()
        with pytest.raises(UserError, match=message):
            there.write_bytes("file", b"")
        assert len(storage.requests) == 1
    for name in ("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
    program = f"from diptych.features.addresses import Elsewhere; Elsewhere({address!r}).read('file')"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert f"UserError: {address}/file: NoCredentialsError: Unable to locate credentials" in said


def test_a_dead_server_ends_in_one_message(storage: ObjectStorage, address: str) -> None:
    there = Elsewhere(address)
    there.write_bytes("file", b"content")
    storage.fault = lambda request: "SlowDown"
    storage.requests.clear()
    with pytest.raises(UserError, match=r"file: 6 tries failed, the last by OSError .*reduce your request rate"):
        there.read_range("file", 0, 4)
    assert len(storage.requests) == addresses.TRIES, "no tries within tries"


def test_a_file_that_ends_before_is_said(storage: ObjectStorage, address: str) -> None:
    there = Elsewhere(address)
    there.write_bytes("file", b"content")
    assert there.read_range("file", 3, 7) == b"tent"
    for start in (3, 20):
        with pytest.raises(UserError, match=r"file: 7 bytes, at least 22 were expected.* publish again"):
            there.read_range("file", start, 22)


def test_without_s3fs_it_says_what_to_install(address: str) -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        f"from diptych.features.addresses import Elsewhere; Elsewhere({address!r}).read('file')"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert f"UserError: {address}: " in said and said.strip().endswith("pip install s3fs")


# The feature store


def make_store(root: Path, images: list[str] = IMAGES, part: int = 10) -> FeatureStore:
    """A store with rows for some images in parts of ten; a row has the number of its image."""
    root.mkdir(exist_ok=True)
    store = FeatureStore(root, META)
    for start in range(0, len(images), part):
        some = images[start : start + part]
        store.append([f"image-{int(image, 16)}" for image in some], some, rows_of(some))
    return store


def rows_of(images: list[str]) -> np.ndarray:
    """float16 [n, 64, 4]."""
    return np.array([int(image, 16) for image in images], np.float16)[:, None, None] * np.ones((64, 4), np.float16)


def rows_in(store: FeatureStore, images: list[str]) -> np.ndarray:
    """What the store has of images, [n, 64, 4]."""
    store.link_into(store.folder.parent / "out", [(f"image-{int(image, 16)}", image) for image in images], 7)
    return FeatureReader(store.folder.parent / "out").rows(range(len(images)))


def test_a_store_comes_back_through_failures(
    storage: ObjectStorage, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "PIECE", 1000)  # of a part of 7 KB
    theirs = make_store(tmp_path / "theirs")
    storage.fault = writing = OftenFailing(4)
    assert publish_parts(theirs, address) == {"written": 6, "there": 0}
    ours = make_store(tmp_path / "ours", [])
    storage.fault = reading = OftenFailing()
    assert bring_parts(ours, address, IMAGES) == len(IMAGES)
    assert writing.failed >= 4 and reading.failed >= 8
    np.testing.assert_array_equal(rows_in(ours, IMAGES), rows_of(IMAGES))
    parts = {path.name: path.read_bytes() for path in theirs.folder.glob("part-*")}
    assert {path.name: path.read_bytes() for path in ours.folder.glob("part-*")} == parts
    storage.requests.clear()
    assert bring_parts(ours, address, IMAGES) == 0 and storage.requests == []
    assert publish_parts(ours, address) == {"written": 0, "there": 6}
    assert not hits(storage, "PUT", "")


def test_only_parts_that_hold_what_is_wanted_come_and_go(storage: ObjectStorage, address: str, tmp_path: Path) -> None:
    publish_parts(make_store(tmp_path / "theirs"), address)
    # others extracted the same images in other parts, and six more
    more = [f"{number:064x}" for number in range(60, 66)]
    storage.requests.clear()
    assert publish_parts(make_store(tmp_path / "others", [*IMAGES, *more], 15), address) == {"written": 1, "there": 4}
    ours = make_store(tmp_path / "ours", IMAGES[:10])
    storage.requests.clear()
    unknown = "f" * 64
    assert bring_parts(ours, address, [*IMAGES[5:25], more[0], unknown]) == 16
    assert len(hits(storage, "GET", ".parquet")) == 3 == len(list(ours.folder.glob("part-*"))) - 1
    assert bring_parts(make_store(tmp_path / "empty", []), f"{address}/nothing", IMAGES) == 0
    with pytest.raises(UserError, match="nobucket.*The specified bucket does not exist"):
        bring_parts(make_store(tmp_path / "empty", []), "s3://nobucket/features", IMAGES)


def test_a_stopped_run_goes_on(
    storage: ObjectStorage, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the fourth part, once as it is published, once as it is brought."""
    monkeypatch.setattr(store_elsewhere, "CONNECTIONS", 1)
    theirs = make_store(tmp_path / "theirs")
    with monkeypatch.context() as patch:
        patch.setattr(Elsewhere, "write", stopping(Elsewhere.write, ".parquet"))
        with pytest.raises(KeyboardInterrupt):
            publish_parts(theirs, address)
    assert publish_parts(theirs, address) == {"written": 3, "there": 3}
    assert set(hits(storage, "PUT", ".parquet").values()) == {1}
    ours = make_store(tmp_path / "ours", [])
    with monkeypatch.context() as patch:
        patch.setattr(addresses, "PIECE", 5000)
        patch.setattr(Elsewhere, "read_range", stopping(Elsewhere.read_range, ".parquet", 8))
        with pytest.raises(KeyboardInterrupt):
            bring_parts(ours, address, IMAGES)
    assert len(list(ours.folder.iterdir())) == 4, "three parts, `_meta.json`, and nothing half"
    storage.requests.clear()
    assert bring_parts(ours, address, IMAGES) == 30 and len(hits(storage, "GET", ".parquet")) == 3
    np.testing.assert_array_equal(rows_in(ours, IMAGES), rows_of(IMAGES))


def stopping(method, ending: str, at: int = 4):
    """A method of Elsewhere that is interrupted from the so manieth call on for such a file."""
    calls = []

    def called(self, name, *rest):
        calls.append(name)
        if name.endswith(ending) and sum(each.endswith(ending) for each in calls) >= at:
            raise KeyboardInterrupt
        return method(self, name, *rest)

    return called


def test_what_is_damaged_there_is_no_part_here(storage: ObjectStorage, address: str, tmp_path: Path) -> None:
    theirs = make_store(tmp_path / "theirs", IMAGES[:10])
    publish_parts(theirs, address)
    there = Elsewhere(f"{address}/{theirs.folder.name}")
    (part,) = (name for name in there.names() if name.endswith(".parquet"))
    whole = there.read(part)
    ours = make_store(tmp_path / "ours", [])
    for content, message in (
        (bytes([whole[0] ^ 1]) + whole[1:], rf"{part}: damaged \(its sha256 is not that of part-\w+\.json\); remove both there"),
        (whole[:-1], rf"{part}: {len(whole) - 1} bytes, at least {len(whole)} were expected"),
    ):
        there.write_bytes(part, content)
        with pytest.raises(UserError, match=message):
            bring_parts(ours, address, IMAGES)
        assert not list(ours.folder.glob("*part*"))
    there.write_bytes(part.replace(".parquet", ".json"), b"{}")
    with pytest.raises(UserError, match=r"part-\w+\.json: damaged .*remove it there and publish again"):
        bring_parts(ours, address, IMAGES)


@pytest.mark.parametrize("kind", ["features", "tokens"])
def test_an_extraction_brings_what_is_there(storage: ObjectStorage, address: str, tmp_path: Path, kind: str) -> None:
    """What others have extracted is not extracted again, and what comes of it is the same, byte for byte."""
    manifest = make_dataset(tmp_path / "dataset", 20)
    table = read_manifest(manifest)
    if kind == "tokens":
        load, section = FakeTokenizer(), "l_verse.tokens"
    else:
        torch.manual_seed(0)
        save_detector(Detector(DetectorConfig(64, (8, 8, 8, 8), 8, 16), ["kite"], ["red"]), tmp_path / "detector")
        load, section = DetectorLoader(str(tmp_path / "detector"), "torchvision"), "extract"

    def run(name: str, count: int, elsewhere: str | None) -> dict[str, int]:
        return encode_images(
            table.slice(0, count), manifest, load, tmp_path / name, tmp_path / f"{name}_out", CONFIG, 0, 1, "cpu", section, elsewhere
        )

    assert run("theirs", 12, None) == {"images": 12, "extracted": 12, "reused": 0, "failed": 0}
    (folder,) = (tmp_path / "theirs").iterdir()
    publish_parts(FeatureStore(tmp_path / "theirs", FeatureReader(tmp_path / "theirs_out").meta), address)
    assert run("ours", 12, address) == {"images": 12, "extracted": 0, "brought": 12, "reused": 0, "failed": 0}
    files = sorted(path.name for path in (tmp_path / "ours_out").iterdir())
    assert len(files) >= 3 and (tmp_path / "ours" / folder.name).is_dir()
    assert filecmp.cmpfiles(tmp_path / "theirs_out", tmp_path / "ours_out", files, shallow=False) == (files, [], [])
    storage.requests.clear()
    assert run("ours", 12, address)["reused"] == 12 and storage.requests == []
    assert run("ours", 20, address) == {"images": 20, "extracted": 8, "brought": 0, "reused": 12, "failed": 0}
