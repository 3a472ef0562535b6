"""From files to shards: each artifact's contract, and what happens to bad input and interrupted runs."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from extraction import TOLERANCE, extract
from PIL import Image

from diptych.features.codebook.clustering import ClusterConfig, build_codebook
from diptych.features.codebook.reading import load_codebook, read_codes
from diptych.features.detector import Detector, DetectorConfig, load_detector, save_detector
from diptych.features.errors import UserError
from diptych.features.files import sha256_of
from diptych.features.images import ImageError, read_image, to_uint8_tensor
from diptych.features.manifest import MANIFEST, read_manifest, write_manifest, write_scenes
from diptych.features.order import batch_indices
from diptych.features.shards.reading import ShardDataset
from diptych.features.shards.writing import write_shards
from diptych.features.store import FeatureReader, FeatureStore, cut_into_parts

COUNT, DIM = 60, 32


def make_dataset(folder: Path, count: int = COUNT) -> Path:
    """Random pictures of several sizes with a manifest and a scenes table."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        shape = (int(rng.integers(40, 90)), int(rng.integers(40, 90)), 3)
        path = folder / "images" / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
        rows.append(
            {
                "image_id": f"image-{number:03d}",
                "split": "train" if number < count * 0.8 else "val",
                "path": f"images/{number}.jpg",
                "width": shape[1],
                "height": shape[0],
                "sha256": sha256_of(path),
                "captions": [f"caption {number} ."],
                "objects": [{"bbox": [0, 0, 10, 10], "label": "kite", "attributes": ["red"]}],
            }
        )
    write_scenes(write_manifest(rows, folder / "manifest.parquet"), folder / "scenes.parquet")
    return folder / "manifest.parquet"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    save_detector(Detector(DetectorConfig(64, (8, 8, 8, 8), 8, DIM), ["kite"], ["red"]), folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def features(manifest: Path, detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    assert extract(manifest, detector, folder / "store", folder / "out")["extracted"] == COUNT
    return folder / "out"


# Manifest


def test_a_manifest_reads_back_and_is_the_same_bytes_each_time(manifest: Path, tmp_path: Path) -> None:
    table = read_manifest(manifest)
    assert table.schema.equals(MANIFEST)
    write_manifest(table.to_pylist(), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == manifest.read_bytes()
    assert "captions" not in read_manifest(manifest.with_name("scenes.parquet")).column_names


def test_manifest_mistakes_are_named(manifest: Path, tmp_path: Path) -> None:
    rows = read_manifest(manifest).to_pylist()
    with pytest.raises(UserError, match="image-000 occurs twice"):
        write_manifest([rows[0], rows[0]], tmp_path / "m.parquet")
    with pytest.raises(UserError, match="lacks sha256"):
        write_manifest([{k: v for k, v in rows[0].items() if k != "sha256"}], tmp_path / "m.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"broken\.parquet.*not a readable"):
        read_manifest(tmp_path / "broken.parquet")
    assert not (tmp_path / "m.parquet").exists()


# Images


def test_unusual_images_become_upright_rgb(tmp_path: Path) -> None:
    gradient = np.linspace(0, 65535, 16 * 8).reshape(8, 16).astype(np.uint16)
    Image.fromarray(gradient).save(tmp_path / "deep.png")
    deep = np.asarray(read_image(tmp_path / "deep.png"))
    assert deep.shape == (8, 16, 3) and abs(int(deep[4, 8, 0]) - gradient[4, 8] / 257) <= 1
    for mode in ("L", "P", "CMYK", "RGBA", "1"):
        name = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new("RGB", (5, 7), (255, 0, 0)).convert(mode).save(name)
        assert to_uint8_tensor(read_image(name)).shape == (3, 7, 5)
    turned = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize("kind", ["missing", "empty", "not_an_image", "truncated"])
def test_bad_images_say_what_is_wrong(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "not_an_image":
        path.write_text("<html>not found</html>")
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"picture\.jpg") as caught:
        read_image(path)
    assert caught.value.kind == kind


# Features


def test_features_are_the_detectors(features: Path, manifest: Path, detector: Path) -> None:
    reader = FeatureReader(features)
    assert len(reader) == COUNT and len(reader.parts) > 3
    ids, sha256s, grids = next(reader.batches())
    assert grids.shape == (len(ids), 64, DIM) and grids.dtype == np.float16
    rows = read_manifest(manifest).to_pylist()
    assert (ids, sha256s) == (
        [r["image_id"] for r in rows[: len(ids)]], [r["sha256"] for r in rows[: len(ids)]]
    )  # fmt: skip
    network = load_detector(detector)
    image = network.prepare(read_image(manifest.parent / rows[1]["path"]))
    expected = network.grid_features(image[None])[0]
    np.testing.assert_allclose(grids[1].astype(np.float32), expected.numpy(), **TOLERANCE)


def test_rows_are_read_at_random_as_in_order(features: Path) -> None:
    reader = FeatureReader(features)
    batches = list(reader.batches())
    grids = np.concatenate([batch[2] for batch in batches])
    order = np.random.default_rng(0).permutation(COUNT)
    np.testing.assert_array_equal(reader.rows(order), grids[order])
    assert reader.image_ids() == [image_id for batch in batches for image_id in batch[0]]
    copy = pickle.loads(pickle.dumps(reader))  # as to a data loader's worker
    np.testing.assert_array_equal(copy.rows([5]), grids[5:6])


def test_parts_that_another_program_wrote_are_read_too(features: Path, tmp_path: Path) -> None:
    reader = FeatureReader(features)
    grids = reader.rows(range(COUNT))
    shutil.copytree(features, tmp_path / "foreign")
    for part in (tmp_path / "foreign").glob("part-*.parquet"):
        table = pq.read_table(part)
        part.unlink()
        pq.write_table(table, part, compression="zstd", row_group_size=7)
    np.testing.assert_array_equal(FeatureReader(tmp_path / "foreign").rows(range(COUNT)), grids)


@pytest.mark.parametrize(("batch_size", "part_size"), [(1, 10), (3, 60), (64, 7)])
def test_features_do_not_depend_on_batches_and_parts(
    batch_size: int, part_size: int, features: Path, manifest: Path, detector: Path, tmp_path: Path
) -> None:
    rows = read_manifest(manifest).to_pylist()
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
    write_manifest(rows[::-1], tmp_path / "reversed.parquet")
    extract(
        tmp_path / "reversed.parquet", detector, tmp_path / "store", tmp_path / "out",
        batch_size=batch_size, part_size=part_size,
    )  # fmt: skip
    turned, straight = FeatureReader(tmp_path / "out"), FeatureReader(features)
    assert turned.image_ids() == straight.image_ids()[::-1]
    np.testing.assert_allclose(
        turned.rows(range(COUNT))[::-1].astype(np.float32),
        straight.rows(range(COUNT)).astype(np.float32),
        **TOLERANCE,
    )


@pytest.mark.slow  # test_extract_faults.py compares actors with one process
def test_ray_actors_give_the_same_features(
    features: Path, manifest: Path, detector: Path, tmp_path: Path
) -> None:
    counts = extract(manifest, detector, tmp_path / "store", tmp_path / "out", workers=2)
    assert counts == {"images": COUNT, "extracted": COUNT, "reused": 0, "failed": 0}
    one, two = (FeatureReader(f).rows(range(COUNT)).astype(np.float32) for f in (features, tmp_path / "out"))
    np.testing.assert_allclose(one, two, **TOLERANCE)


def test_known_images_are_never_extracted_again(
    features: Path, manifest: Path, detector: Path, tmp_path: Path
) -> None:
    table = read_manifest(manifest)
    write_manifest(table.slice(0, 25).to_pylist(), manifest.with_name("few.parquet"))
    extract(manifest.with_name("few.parquet"), detector, tmp_path / "store", tmp_path / "few")
    counts = extract(manifest, detector, tmp_path / "store", tmp_path / "all")
    assert (counts["extracted"], counts["reused"]) == (COUNT - 25, 25)
    assert content(tmp_path / "all").keys() == content(features).keys()
    one, two = (FeatureReader(f).rows(range(COUNT)).astype(np.float32) for f in (features, tmp_path / "all"))
    np.testing.assert_allclose(one, two, **TOLERANCE)


def test_another_detector_is_another_key(tmp_path: Path) -> None:
    one, two = (FeatureStore(tmp_path, {"feature_dim": 4, "detector": name}) for name in "ab")
    one.append(["x"], ["s"], np.zeros((1, 64, 4), np.float16))
    assert one.folder != two.folder and two.known() == {} and list(one.known()) == ["s"]


def test_ten_new_images_among_many_are_ten_extractions_and_leave_most_parts_alone(tmp_path: Path) -> None:
    keys = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(2010)]
    store = FeatureStore(tmp_path / "store", {"feature_dim": 1})
    features = np.arange(2010, dtype=np.float16)[:, None, None].repeat(64, 1)
    old = [n for n in range(2010) if n % 201]  # ten are missing, here and there
    for part in cut_into_parts([keys[n] for n in old], 50):
        chosen = old[part]
        store.append([f"i{n}" for n in chosen], [keys[n] for n in chosen], features[chosen])
    store.link_into(tmp_path / "before", [(f"i{n}", keys[n]) for n in old], 50)
    new = [n for n in range(2010) if n % 201 == 0]
    assert [n for n in range(2010) if keys[n] not in store.known()] == new
    store.append([f"i{n}" for n in new], [keys[n] for n in new], features[new])
    store.link_into(tmp_path / "after", [(f"i{n}", keys[n]) for n in range(2010)], 50)
    np.testing.assert_array_equal(FeatureReader(tmp_path / "after").rows(range(2010)), features)
    before, after = (set(content(tmp_path / name).values()) for name in ("before", "after"))
    assert len(after) > 30 and len(after - before) <= 20


def test_parts_are_cut_within_bounds() -> None:
    keys = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(5000)]
    parts = cut_into_parts(keys, 40)
    lengths = [part.stop - part.start for part in parts]
    assert (
        parts[0].start == 0
        and [p.stop for p in parts[:-1]] == [p.start for p in parts[1:]]
        and sum(lengths) == 5000
    )
    assert min(lengths[:-1]) >= 10 and max(lengths) <= 80 and 25 < np.mean(lengths) < 60
    assert cut_into_parts([], 40) == [] and cut_into_parts(["same"] * 5, 2) in (
        [slice(0, 4), slice(4, 5)],
        [slice(n, n + 1) for n in range(5)],
    )


def test_damaged_images_are_counted_by_kind(manifest: Path, detector: Path, tmp_path: Path) -> None:
    rows = read_manifest(manifest).to_pylist()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    bad = [
        {**rows[0], "image_id": name, "path": str(tmp_path / f"{name}.jpg"), "sha256": name}
        for name in ("empty", "text", "gone")
    ]
    for row in bad[:2]:
        row["sha256"] = sha256_of(Path(row["path"]))
    good = [{**row, "path": str(manifest.parent / row["path"])} for row in rows]
    path = tmp_path / "m.parquet"
    write_manifest([*bad, *good], path)
    counts = extract(path, detector, tmp_path / "store", tmp_path / "out")
    assert (counts["failed"], counts["extracted"]) == (3, COUNT)
    failures = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert {f["image_id"]: f["kind"] for f in failures} == {
        "empty": "empty",
        "text": "not_an_image",
        "gone": "missing",
    }
    assert len(FeatureReader(tmp_path / "out")) == COUNT
    with pytest.raises(UserError, match=r"3 of 63 images failed \(1 empty.*max_failed_share = 0\.01"):
        extract(path, detector, tmp_path / "store", tmp_path / "strict", max_failed_share=0.01)


# Codebook


@pytest.fixture(scope="module")
def codebook(features: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codebook")
    build_codebook(FeatureReader(features), train_ids(manifest), ClusterConfig(20, 10, 256, 0), 2, folder)
    return folder


def train_ids(manifest: Path) -> set[str]:
    return {row["image_id"] for row in read_manifest(manifest).to_pylist() if row["split"] == "train"}


def test_codes_are_the_nearest_centroids(features: Path, codebook: Path) -> None:
    centroids = load_codebook(codebook)
    assert centroids.shape == (20, DIM) and centroids.dtype == np.float32
    ids, codes = read_codes(codebook)
    batches = list(FeatureReader(features).batches())
    cells = np.concatenate([b[2] for b in batches]).astype(np.float32)
    assert ids == [i for b in batches for i in b[0]]
    distances = ((cells[:, :, None] - centroids) ** 2).sum(-1)
    chosen = np.take_along_axis(distances, codes[..., None], 2)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(-1), rtol=1e-3, atol=1e-3)


def test_clustering_is_seeded_and_its_error_is_true(
    features: Path, manifest: Path, codebook: Path, tmp_path: Path
) -> None:
    config = ClusterConfig(20, 10, 256, 0)
    metrics, curve = build_codebook(FeatureReader(features), train_ids(manifest), config, 2, tmp_path)
    assert content(tmp_path) == content(codebook)
    assert curve[-1]["inertia"] <= curve[0]["inertia"] and len(curve) == 10
    train = [b[2][[i in train_ids(manifest) for i in b[0]]] for b in FeatureReader(features).batches()]
    cells = np.concatenate(train).astype(np.float64).reshape(-1, DIM)
    codes = read_codes(codebook)[1][: len(cells) // 64].reshape(-1)
    lost = ((cells - load_codebook(codebook)[codes]) ** 2).sum()
    assert metrics["relative_error"] == pytest.approx(lost / ((cells - cells.mean(0)) ** 2).sum(), rel=1e-3)


def test_more_centroids_than_cells_are_refused(features: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.k = 5000.*3072 grid cells"):
        build_codebook(
            FeatureReader(features), train_ids(manifest), ClusterConfig(5000, 2, 256, 0), 2, tmp_path
        )
    assert not list(tmp_path.iterdir())


# Shards


@pytest.fixture(scope="module")
def shards(manifest: Path, features: Path, codebook: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    counts = write_shards(read_manifest(manifest), manifest, features, codebook, folder, shard_size=20)
    assert counts == {"train": 48, "val": 12}
    return folder


def test_shards_hold_what_features_codes_and_manifest_hold(
    shards: Path, manifest: Path, features: Path, codebook: Path
) -> None:
    train = ShardDataset(shards, "train")
    rows = read_manifest(manifest).to_pylist()[:48]
    order = np.random.default_rng(0).permutation(48)
    grids = np.concatenate([b[2] for b in FeatureReader(features).batches()])[:48]
    assert train.keys == [row["image_id"] for row in rows]
    np.testing.assert_array_equal(train.grid(order), grids[order])
    np.testing.assert_array_equal(train.codes(order), read_codes(codebook)[1][order])
    assert train.captions(7) == ["caption 7 ."] and train.meta(7)["objects"] == rows[7]["objects"]
    assert train.image_bytes(7) == (manifest.parent / rows[7]["path"]).read_bytes()
    assert train.images([1, 2], 32).shape == (2, 3, 32, 32)


def test_any_webdataset_reader_opens_the_shards(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    names = sorted(str(path) for path in shards.glob("train-*.tar"))
    samples = list(webdataset.WebDataset(names, shardshuffle=False).decode())
    train = ShardDataset(shards, "train")
    assert len(names) == 3 and [s["__key__"] for s in samples] == train.keys
    np.testing.assert_array_equal(samples[30]["grid.npy"], train.grid([30])[0])
    assert samples[30]["json"]["captions"] == train.captions(30)


def test_shards_are_the_same_bytes_each_time(
    shards: Path, manifest: Path, features: Path, codebook: Path, tmp_path: Path
) -> None:
    write_shards(read_manifest(manifest), manifest, features, codebook, tmp_path, shard_size=20)
    assert content(tmp_path) == content(shards)


def test_a_missing_or_truncated_shard_is_named_before_training(shards: Path, tmp_path: Path) -> None:
    for name, data in content(shards).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "train-000001.tar").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train-000001\.tar: 5 bytes instead of"):
        ShardDataset(tmp_path, "train")
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: the shard is missing"):
        ShardDataset(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'dev'; it has train, val"):
        ShardDataset(tmp_path, "dev")
    assert json.loads((tmp_path / "index.json").read_text())["version"] == 1


def test_an_epoch_is_every_sample_once() -> None:
    for count, batch in ((10, 4), (7, 3), (5, 8)):
        steps = count * 3  # three or more epochs, also with batches that cross their ends
        seen = np.concatenate([batch_indices(count, batch, 1, step) for step in range(steps)])
        epochs = seen[: len(seen) // count * count].reshape(-1, count)
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
