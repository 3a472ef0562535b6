"""Input and surroundings that are not as they should be: what is refused, in which words, and what survives."""

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from extraction import CONFIG
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from diptych.features.codebook.clustering import ClusterConfig, build_codebook
from diptych.features.datasets.coco import CocoConfig, CocoSource, read_coco
from diptych.features.errors import UserError
from diptych.features.extraction.extract import extract_features
from diptych.features.files import sha256_of
from diptych.features.images import ImageError, image_size, read_image, resize_square, to_uint8_tensor
from diptych.features.manifest import read_manifest, write_manifest
from diptych.features.shards.reading import ShardDataset
from diptych.features.shards.writing import write_shards
from diptych.features.store import FeatureReader, FeatureStore


def row(**changes: Any) -> dict[str, Any]:
    """A correct manifest row, and what a test changes in it."""
    return {
        "image_id": "one", "split": "train", "path": "one.jpg", "width": 8, "height": 8, "sha256": "00",
        "captions": ["a kite ."], "objects": None, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": "wide"}, "column width must be int32"),
        ({"width": None}, "column width must be int32: null for image one"),
        ({"height": 2**40}, "column height must be int32"),
        ({"captions": "a kite ."}, "column captions must be list.*a string instead"),
        ({"objects": [{"bbox": "left"}]}, "column objects must be list"),
        ({"image_id": "one.2"}, r"image_id 'one\.2': use letters"),
        ({"image_id": "a/b"}, "image_id 'a/b': use letters"),
        ({"image_id": "x" * 81}, "image_id .*80 at most"),
    ],
)
def test_wrong_values_name_file_and_column(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"m\.parquet: {words}"):
        write_manifest([row(**changes)], tmp_path / "m.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    write_manifest([row()], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes(92) + whole[-8:])  # the footer's end is there, its content is not
    with pytest.raises(UserError, match=r"m\.parquet: not a readable Parquet file"):
        read_manifest(path)
    pq.write_table(pq.read_table(_written(tmp_path)).replace_schema_metadata(None), path)
    with pytest.raises(UserError, match="manifest version none"):
        read_manifest(path)


def _written(folder: Path) -> Path:
    write_manifest([row()], folder / "good.parquet")
    return folder / "good.parquet"


def test_dark_sixteen_bit_images_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(read_image(tmp_path / "dark.png")).max() <= 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize(
    "size", [(10_000, 9_000), (15_000, 12_000)]
)  # Pillow warns of one and refuses the other
def test_decompression_bombs_are_not_decoded(
    read: Callable[[Path], object], size: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("1", size).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb\.png") as caught:
        read(tmp_path / "bomb.png")
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(orientation: int, tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == read_image(tmp_path / "turned.jpg").size


def read_captions(folder: Path, content: Any) -> list[dict[str, Any]]:
    Image.new("RGB", (9, 9)).save(folder / "a.jpg")
    (folder / "captions.json").write_text(json.dumps(content))
    source = CocoSource("train", folder, folder / "captions.json", None)
    return list(read_coco(CocoConfig([source], None, None, [], False, None), 0))


def test_captions_without_images_and_images_without_captions(tmp_path: Path) -> None:
    images = [{"id": "a", "file_name": "a.jpg"}, {"id": "b", "file_name": "a.jpg"}]
    caption = {"image_id": "a", "caption": "A kite"}
    assert [
        r["image_id"] for r in read_captions(tmp_path, {"images": images[:1], "annotations": [caption]})
    ] == ["a"]
    with pytest.raises(UserError, match=r"captions\.json: 1 of 2 images have no caption, the first is b"):
        read_captions(tmp_path, {"images": images, "annotations": [caption]})
    with pytest.raises(UserError, match="names image a, which the file does not list"):
        read_captions(tmp_path, {"images": images[1:], "annotations": [caption]})
    with pytest.raises(UserError, match="not COCO captions"):
        read_captions(tmp_path, ["something else"])


def odd_images(folder: Path) -> dict[str, np.ndarray | str]:
    """Every unusual image that a dataset may hold: its name, and the RGB value that all its pixels have when read
    correctly, or the kind of its failure."""
    red, grey = (200, 0, 0), (119, 119, 119)
    picture = Image.new("RGB", (12, 20), red)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))
    picture.save(folder / "rgb.png")
    picture.save(folder / "png-named.jpg", "PNG")
    Image.new("RGB", (1, 1), red).save(folder / "one-pixel.png")
    Image.new("L", (12, 20), 119).save(folder / "grey.jpg", quality=100)
    picture.quantize(4).save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(np.full((20, 12), 119 * 257, np.uint16)).save(folder / "deep.png")
    picture.save(
        folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (12, 20), (0, 0, 255))]
    )
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "turned.png", exif=exif)
    noise.save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "whole.jpg").unlink()
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("<html>not found</html>")
    Image.new("1", (15_000, 12_000)).save(folder / "bomb.png")
    return {
        "rgb.png": red, "png-named.jpg": red, "one-pixel.png": red, "palette.png": red, "cmyk.tif": red,
        "animated.gif": red, "turned.png": red, "grey.jpg": grey, "deep.png": grey, "truncated.jpg": "truncated",
        "empty.jpg": "empty", "text.jpg": "not_an_image", "bomb.png": "too_large", "gone.jpg": "missing",
    }  # fmt: skip


def test_odd_images_are_extracted_or_listed_by_kind(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    expected = odd_images(folder)
    rows = [
        row(
            image_id=f"i{n}",
            path=str(folder / name),
            sha256=sha256_of(p) if (p := folder / name).exists() else "0",
        )
        for n, name in enumerate(expected)
    ]
    write_manifest(rows, folder / "m.parquet")
    counts = extract(folder / "m.parquet", "out")
    kinds = {name: kind for name, kind in expected.items() if isinstance(kind, str)}
    assert {name[7:]: n for name, n in counts.items() if "." in name} == dict.fromkeys(kinds.values(), 1)
    failures = pq.read_table(folder / "out/failures.parquet").to_pylist()
    assert {Path(f["path"]).name: f["kind"] for f in failures} == kinds
    assert all(Path(f["path"]).name in f["message"] or f["image_id"] in f["message"] for f in failures)
    reader = FeatureReader(folder / "out")  # FakeDetector's features are the cells' mean colours
    names = [name for name in expected if name not in kinds]
    for name, features in zip(names, reader.rows(range(len(names))), strict=True):
        colour = np.broadcast_to(np.array(expected[name]) / 255, features.shape)
        np.testing.assert_allclose(features.astype(np.float32), colour, atol=0.02, err_msg=name)


class FakeDetector:
    """Mean colours of the grid's cells: quick, and easy to recompute."""

    feature_dim, weights_hash, preprocessing = 3, "fake", {"size": 16}

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return 16, 16

    def prepare(self, image: Image.Image) -> Tensor:
        return to_uint8_tensor(resize_square(image, 16))

    def grid_features(self, images: Tensor) -> Tensor:
        return avg_pool2d(images.float() / 255, 2).flatten(2).transpose(1, 2)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures, two of them copies of one empty file, and a detector that needs no training."""
    from diptych.features import detector

    monkeypatch.setattr(detector, "load_detector", lambda folder, device, backend: FakeDetector())
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (16, 16), (number * 20, 255 - number, 7)).save(path)
        if number in (3, 8):
            path.write_bytes(b"")
        rows.append(row(image_id=f"i{number}", path=path.name, sha256=sha256_of(path)))
    write_manifest(rows, tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


def extract(manifest: Path, out: str, share: float = 0.5, part_size: int = 4) -> dict[str, int]:
    config = replace(CONFIG, batch_size=4, part_size=part_size, max_failed_share=share)
    folder = manifest.parent
    return extract_features(
        read_manifest(manifest), manifest, folder, folder / "store", folder / out, config, 0, 1, "cpu"
    )


def test_every_image_of_a_bad_file_is_listed(dataset: Path) -> None:
    assert extract(dataset, "out") == {
        "images": 12,
        "extracted": 10,
        "reused": 0,
        "failed": 2,
        "failed.empty": 2,
    }
    failures = pq.read_table(dataset.parent / "out/failures.parquet").to_pylist()
    assert [(f["image_id"], f["path"], f["kind"]) for f in failures] == [
        ("i3", "3.png", "empty"),
        ("i8", "8.png", "empty"),
    ]
    assert extract(dataset, "again") == {
        "images": 12,
        "extracted": 0,
        "reused": 10,
        "failed": 2,
        "failed.empty": 2,
    }
    for path in (dataset.parent / "out").iterdir():
        assert (dataset.parent / "again" / path.name).read_bytes() == path.read_bytes()


def test_too_many_failures_leave_their_table_and_what_was_extracted(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 12 images failed \(2 empty\).*the first is 3\.png") as caught:
        extract(dataset, "out", share=0.1)
    (table,) = (dataset.parent / "store").glob("*/failures.parquet")
    assert str(table) in str(caught.value) and pq.read_table(table).num_rows == 2
    assert not (dataset.parent / "out").exists()
    assert extract(dataset, "out")["reused"] == 10


def test_an_older_output_leaves_no_parts_behind(dataset: Path) -> None:
    extract(dataset, "out", part_size=2)
    extract(dataset, "out", part_size=1000)
    reader = FeatureReader(dataset.parent / "out")
    assert len(reader.parts) == 1 and len(reader) == 10


def test_a_part_that_a_crash_damaged_is_set_aside(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {"feature_dim": 4})
    part = store.append(["x"], ["s"], np.zeros((1, 64, 4), np.float16))
    part.write_bytes(part.read_bytes()[:100])
    assert store.known() == {} and part.with_suffix(".damaged").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied")],
    ids=["disk", "mode"],
)
def test_a_part_that_cannot_be_read_now_stays(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, {"feature_dim": 4})
    part = store.append(["x"], ["s"], np.zeros((1, 64, 4), np.float16))

    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pyarrow.parquet.read_table", refused)
    with pytest.raises(type(error)) as caught:
        store.known()
    assert part.exists() and caught.value.filename == str(part)


@pytest.mark.parametrize("damage", [FileNotFoundError("gone before"), pa.ArrowInvalid("damaged")], ids=["gone", "damaged"])
def test_a_part_that_another_run_sets_aside_meanwhile_is_left_out(
    damage: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, {"feature_dim": 4})
    store.append(["x"], ["s"], np.zeros((1, 64, 4), np.float16))

    def read_too_late(part: Path, **_: object) -> None:
        part.rename(part.with_suffix(".damaged"))
        raise damage

    monkeypatch.setattr("pyarrow.parquet.read_table", read_too_late)
    assert store.known() == {}


def test_pyarrow_has_no_number_for_its_own_errors(tmp_path: Path) -> None:
    """By which a damaged part is told from a disk that fails."""
    file = tmp_path / "part.parquet"
    pq.write_table(pa.table({"sha256": ["s"] * 1000}), file)
    whole = file.read_bytes()
    for content in (whole[:100], whole[:4] + bytes([255] * 4) + whole[8:], whole[:-8] + bytes(4) + whole[-4:]):
        file.write_bytes(content)
        with pytest.raises((pa.ArrowInvalid, OSError)) as caught:
            pq.read_table(file, columns=["sha256"])
        assert getattr(caught.value, "errno", None) is None


def test_a_store_whose_disk_is_not_mounted_is_named(tmp_path: Path) -> None:
    (tmp_path / "features").symlink_to(tmp_path / "disk/features")
    with pytest.raises(UserError, match=r"/features: a link to /.*/disk/features, which is not there: is its disk"):
        FeatureStore(tmp_path / "features", {"feature_dim": 4})


def test_two_runs_may_begin_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def beaten(folder: Path, *arguments: bool, **options: bool) -> None:
        mkdir(folder, parents=True, exist_ok=True)
        mkdir(folder, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", beaten)
    assert (FeatureStore(tmp_path / "new", {"feature_dim": 4}).folder / "_meta.json").is_file()


def test_features_that_are_not_finite_are_refused(dataset: Path) -> None:
    store = FeatureStore(dataset.parent / "other", {"feature_dim": 2})
    features = np.zeros((2, 64, 2), np.float16)
    features[1, 5, 0] = np.inf
    store.append(["a", "b"], ["1", "2"], features)
    store.link_into(dataset.parent / "inf", [("a", "1"), ("b", "2")], 10)
    with pytest.raises(UserError, match="features of 1 images are not finite: b"):
        build_codebook(
            FeatureReader(dataset.parent / "inf"),
            {"a", "b"},
            ClusterConfig(2, 2, 256, 0),
            1,
            dataset.parent / "codes",
        )
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        ClusterConfig(2, 0, 256, 0)


def test_shards_need_their_images_and_a_whole_index(dataset: Path) -> None:
    folder = dataset.parent
    extract(dataset, "features")
    build_codebook(
        FeatureReader(folder / "features"), {"i0", "i1"}, ClusterConfig(2, 2, 256, 0), 1, folder / "codes"
    )
    arguments = (read_manifest(dataset), dataset, folder / "features", folder / "codes", folder / "shards", 5)
    assert write_shards(*arguments) == {"train": 10}
    (folder / "shards/index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        ShardDataset(folder / "shards", "train")
    (folder / "6.png").unlink()
    with pytest.raises(UserError, match=r"6\.png: no such image file"):
        write_shards(*arguments)
    assert not (folder / "shards/index.json").exists()


def test_leftovers_of_killed_runs_go_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {"feature_dim": 4})
    yesterday = time.time() - 25 * 60 * 60
    for name in (".part-a.parquet.x1", ".part-b.parquet.x2", "part-c.parquet"):
        (store.folder / name).touch()
        if "b" not in name:
            os.utime(store.folder / name, (yesterday, yesterday))
    store.remove_leftovers()
    assert sorted(path.name for path in store.folder.iterdir()) == [".part-b.parquet.x2", "_meta.json", "part-c.parquet"]


def test_a_damaged_table_of_failures_is_set_aside(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {"feature_dim": 4})
    store.record_failures([{"sha256": "1", "kind": "empty", "message": "no bytes"}])
    (store.folder / "failures-0.parquet").write_bytes(b"PAR1 half")
    assert store.failures().keys() == {"1"}
    assert (store.folder / "failures-0.damaged").exists() and not (store.folder / "failures-0.parquet").exists()
