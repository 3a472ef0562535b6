"""Pictures straight from the manifest, codes in the store, and any encoder behind extraction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from diptych.features.datasets import picture_folder
from diptych.features.datasets.picture_folder import write_folder
from diptych.features.detector import Detector, DetectorConfig, save_detector
from diptych.features.errors import UserError
from diptych.features.extraction.claims import Claims
from diptych.features.extraction.encoder import RegionLoader
from diptych.features.extraction.extract import EncodingConfig, _Plan, encode_images
from diptych.features.extraction.workers import Encoded
from diptych.features.files import sha256_of
from diptych.features.images import read_image, resize_square, to_uint8_tensor
from diptych.features.manifest import read_manifest, write_manifest
from diptych.features.pictures import DescribedPictures, ManifestPictures, TokenizedPictures
from diptych.features.ray_cluster import Death
from diptych.features.store import FeatureReader, FeatureStore, Values, code_values, grid_values

COUNT = 14
CONFIG = EncodingConfig(
    batch_size=4, part_size=5, max_failed_share=0.0, retry_failed=False, ray_address=None, precision="float32"
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Ten training pictures and four others, of several sizes and two kinds of file."""
    rows = []
    for number in range(COUNT):
        size = (20 + number, 24)
        path = tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}"
        Image.new("RGB", size, (number * 15, 255 - number * 9, 7)).save(path)
        rows.append(
            {
                "image_id": f"i{number}", "split": "train" if number < 10 else "val", "path": path.name, "width": size[0],
                "height": size[1], "sha256": sha256_of(path), "captions": [f"picture {number}."], "objects": None,
            }
        )  # fmt: skip
    write_manifest(rows, tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


@dataclass(frozen=True)
class FakeTokenizer:
    """Codes of six cells: the first is the picture's red, the others count up from it."""

    salt: str = "a"

    def __call__(self, device: str) -> FakeTokenizer:
        return self

    @property
    def values(self) -> Values:
        return code_values(6)

    @property
    def meta(self) -> dict:
        return {"image_tokenizer": self.salt, "cells": 6, "codebook_size": 300}

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return 8, 8

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return to_uint8_tensor(resize_square(image, 8))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 4, 4].long()[:, None] + torch.arange(6)


def encoded(manifest: Path, out: str, load=FakeTokenizer(), config: EncodingConfig = CONFIG) -> dict[str, int]:
    folder = manifest.parent
    return encode_images(
        read_manifest(manifest), manifest, load, folder / "store", folder / out, config, 0, 1, "cpu", "l_verse.tokens"
    )


def expected(manifest: Path, pictures: ManifestPictures) -> np.ndarray:
    reds = pictures.images(range(len(pictures)), 8)[:, 0, 4, 4].long()
    return (reds[:, None] + torch.arange(6)).numpy()


def test_pictures_are_those_of_the_split(manifest: Path) -> None:
    pictures = ManifestPictures(manifest, "train")
    assert pictures.keys == [f"i{number}" for number in range(10)] and len(pictures) == 10
    assert pictures.captions(3) == ["picture 3."] and pictures.meta(3)["width"] == 23
    images = pictures.images([3, 0], 16)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.uint8
    own = to_uint8_tensor(resize_square(read_image(manifest.parent / "3.png"), 16))
    assert images[0].equal(own)
    assert pictures.image_bytes(0) == (manifest.parent / "0.jpg").read_bytes(), "a JPEG that needs no change is itself"
    assert pictures.image_bytes(1)[:2] == b"\xff\xd8", "anything else becomes one"
    with pytest.raises(UserError, match="no image is in the split 'test'"):
        ManifestPictures(manifest, "test")


def test_unreadable_pictures_are_left_out_up_to_a_share(manifest: Path) -> None:
    (manifest.parent / "4.jpg").write_bytes(b"no picture")
    (manifest.parent / "5.png").unlink()
    Image.new("RGB", (25, 24)).save(manifest.parent / "6.jpg")
    pictures = ManifestPictures(manifest, "train")
    halves = [pictures.unreadable(range(start, 10, 2)) for start in (0, 1)]
    assert [sorted(half) for half in halves] == [["i4", "i6"], ["i5"]]
    unreadable = halves[0] | halves[1]
    assert "the file changed since" in unreadable["i4"] and "no such image file" in unreadable["i5"]
    with pytest.raises(UserError, match=r"3 of 10 images of the split train cannot be read, and key is 0.2; the first: .*4.jpg"):
        pictures.leave_out(unreadable, 0.2, "key")
    pictures.leave_out(unreadable, 0.3, "key")
    assert pictures.keys == ["i0", "i1", "i2", "i3", "i7", "i8", "i9"]
    assert pictures.captions(4) == ["picture 7."]
    (manifest.parent / "9.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"9.png: .*; mend or remove it, then run `dvc repro dataset`"):
        pictures.images([6], 8)


def test_codes_are_kept_by_picture_and_image_tokenizer(manifest: Path) -> None:
    assert encoded(manifest, "tokens") == {"images": COUNT, "extracted": COUNT, "reused": 0, "failed": 0}
    assert encoded(manifest, "again")["reused"] == COUNT
    assert encoded(manifest, "other", FakeTokenizer("b"))["extracted"] == COUNT, "another image tokenizer is another key"
    for split, count in (("train", 10), ("val", 4)):
        pictures = TokenizedPictures(manifest, split, manifest.parent / "tokens", "make l-verse")
        assert (len(pictures), pictures.image_tokenizer, pictures.codebook_size) == (count, "a", 300)
        codes = pictures.codes(range(count))
        assert codes.dtype == np.int64
        np.testing.assert_array_equal(codes, expected(manifest, pictures))
    reader = FeatureReader(manifest.parent / "tokens")
    parts = [rows for _, _, rows in reader.batches()]
    assert parts[0].dtype == np.dtype("<u2") and sum(map(len, parts)) == COUNT
    with pytest.raises(UserError, match="no feature folder there; run `make l-verse`"):
        TokenizedPictures(manifest, "train", manifest.parent / "nowhere", "make l-verse")


def test_pictures_without_codes_are_left_out(manifest: Path) -> None:
    (manifest.parent / "4.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"l_verse.tokens: 1 of 14 images failed \(1 changed\).*l_verse.tokens.max_failed_share = 0.0"):
        encoded(manifest, "tokens")
    assert encoded(manifest, "tokens", config=replace(CONFIG, max_failed_share=0.1))["failed"] == 1
    pictures = TokenizedPictures(manifest, "train", manifest.parent / "tokens", "make l-verse")
    assert "i4" not in pictures.keys and len(pictures) == 9
    np.testing.assert_array_equal(pictures.codes(range(9)), expected(manifest, pictures))


def test_a_folder_becomes_a_table_of_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "imagenet"
    for number in range(60):
        path = folder / f"n{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6 + number % 3), (number, 2, 3)).save(path)
    (folder / "n0/broken.jpg").write_bytes(b"no picture")
    (folder / "n0/notes.txt").write_text("no picture either")
    table = tmp_path / "data/scenes.parquet"
    counts = write_folder(folder, table, 0.3)
    assert counts["images"] == 60 and counts["left_out"] == 1 and 5 < counts["val"] < 35
    said = capsys.readouterr().err
    assert "left out 1 .txt" in said and "broken.jpg" in said
    train, val = (ManifestPictures(table, split) for split in ("train", "val"))
    assert len(train) + len(val) == 60 and not {*train.keys} & {*val.keys} and len(val) == counts["val"]
    assert train.images([0], 8).shape == (1, 3, 8, 8) and "captions" not in train.meta(0)
    first = {**dict(zip(train.keys, ["train"] * len(train), strict=True)), **dict.fromkeys(val.keys, "val")}
    (folder / "n1/1.png").unlink()
    write_folder(folder, table, 0.3)
    again = {key: split for split in ("train", "val") for key in ManifestPictures(table, split).keys}
    assert len(again) == 59 and again.items() <= first.items(), "a picture's split is its own"
    with pytest.raises(UserError, match="nowhere: no such folder"):
        write_folder(tmp_path / "nowhere", table, 0.3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no picture in it that can be read"):
        write_folder(tmp_path / "empty", table, 0.3)
    with pytest.raises(UserError, match="0 of 59 pictures are in the split val; give another share by --val"):
        write_folder(folder, table, 0.0)


def test_regions_of_a_detector_are_stored_as_features_are(manifest: Path, tmp_path: Path) -> None:
    """The surest first, each the feature of one proposal; more regions than proposals, and another detector's, are said."""
    torch.manual_seed(0)
    config = DetectorConfig(image_size=64, channels=(8, 8, 8, 8), pyramid_channels=8, feature_dim=16)
    detector = Detector(config, ["kite", "boat"], ["red"]).eval()
    save_detector(detector, tmp_path / "detector")
    loader, store, out = RegionLoader(str(tmp_path / "detector"), 5), tmp_path / "store", tmp_path / "out"
    encode_images(read_manifest(manifest), manifest, loader, store, out, CONFIG, 0, 1, "cpu")
    described = DescribedPictures(manifest, "train", out, "make it")
    assert described.feature_dim == 16 and described.grid([0, 3]).shape == (2, 5, 16)
    images = torch.stack([detector.prepare(read_image(manifest.parent / f"{number}.{'png' if number % 2 else 'jpg'}")) for number in (0, 3)])
    with torch.no_grad():
        found = detector.region_features(images, 5)
        torch.testing.assert_close(torch.from_numpy(described.grid([0, 3])).float(), found, rtol=2e-3, atol=2e-3)
        levels, shapes = detector._levels(images.float() / 255)
        proposals, _ = detector.rpn(ImageList(images, shapes), levels)
        heads = detector.heads
        rows = heads.box_head.features(heads.box_roi_pool(levels, proposals, shapes))
        sure = heads.box_predictor.classes(heads.box_head(heads.box_roi_pool(levels, proposals, shapes))).softmax(-1)[:, 1:].amax(-1)
        for image, (features, scores) in enumerate(
            zip(rows.split([len(p) for p in proposals]), sure.split([len(p) for p in proposals]), strict=True)
        ):
            apart = torch.cdist(found[image], features)
            assert float(apart.amin(1).max()) < 1e-4, "a region is none of the proposals"
            assert apart[0].argmin() == scores.argmax()
        with pytest.raises(UserError, match="regions are wanted; want fewer"):
            detector.region_features(images, 500)


def test_codes_stay_with_their_pictures_when_some_are_left_out(manifest: Path) -> None:
    encoded(manifest, "tokens")
    pictures = TokenizedPictures(manifest, "train", manifest.parent / "tokens", "make l-verse")
    pictures.leave_out({"i0": "damaged", "i4": "damaged"}, 0.5, "key")
    np.testing.assert_array_equal(pictures.codes(range(8)), expected(manifest, pictures))


def test_a_table_that_is_not_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = tmp_path / "pictures", tmp_path / "scenes.parquet"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (number, 2, 3)).save(folder / f"{number}.png")
    with monkeypatch.context() as patch:
        patch.setattr(picture_folder, "write_scenes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("sys.argv", ["picture_folder", str(folder), str(table), "--val", "0.5"])
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
            picture_folder.main()
    assert getattr(ended.value, "code", None) == 130 and not table.exists()
    monkeypatch.setattr("sys.argv", ["picture_folder", str(folder), str(folder / "0.png/x.parquet"), "--val", "0.5"])
    with pytest.raises(SystemExit, match=r"0.png: .*[Ee]xists|0.png.*: Not a directory"):
        picture_folder.main()


@dataclass(frozen=True)
class FakeDetector(FakeTokenizer):
    """Features that are the picture's red, NaN of i3 and infinite of i6."""

    @property
    def values(self) -> Values:
        return grid_values(1)

    @property
    def meta(self) -> dict:
        return {"detector": "fake", "feature_dim": 1}

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, 0, 4, 4].half()
        red = torch.where(red == 45, torch.nan, torch.where((red - 90).abs() <= 1, torch.inf, red))
        return red[:, None, None].expand(-1, 64, 1)


def test_features_that_are_not_finite_are_failures(manifest: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 14 images failed \(1 not_finite, 1 overflow\)"):
        encoded(manifest, "features", FakeDetector())
    counts = encoded(manifest, "features", FakeDetector(), replace(CONFIG, max_failed_share=0.2))
    assert (counts["reused"], counts["failed"]) == (12, 2), "they were not tried again"
    pictures = DescribedPictures(manifest, "train", manifest.parent / "features", "make it")
    assert pictures.keys == [f"i{number}" for number in (0, 1, 2, 4, 5, 7, 8, 9)]
    reds = pictures.images(range(8), 8)[:, 0, 4, 4].half().numpy()
    np.testing.assert_array_equal(pictures.grid(range(8))[:, 63, 0], reds)


class Interrupted(FakeTokenizer):
    """Is interrupted at its second batch."""

    batches = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        Interrupted.batches += 1
        if Interrupted.batches == 2:
            raise KeyboardInterrupt
        return super().encode(images)


def with_a_broken_picture(manifest: Path) -> None:
    (manifest.parent / "1.png").write_bytes(b"no picture")
    rows = read_manifest(manifest).to_pylist()
    rows[1]["sha256"] = sha256_of(manifest.parent / "1.png")
    write_manifest(rows, manifest)


def test_an_interrupted_run_remembers_what_it_found(manifest: Path) -> None:
    with_a_broken_picture(manifest)
    with pytest.raises(KeyboardInterrupt):
        encoded(manifest, "tokens", Interrupted())
    store = FeatureStore(manifest.parent / "store", {"precision": "float32", **FakeTokenizer().meta})
    (failure,) = store.failures().values()
    assert failure["kind"] == "not_an_image" and "i1" in failure["message"]


def test_pictures_are_no_failures_while_every_task_dies(manifest: Path) -> None:
    store, rows = FeatureStore(manifest.parent / "store", FakeTokenizer().meta), read_manifest(manifest).to_pylist()
    with Claims(store.folder / "runs") as claims:
        plan = _Plan(rows, manifest, store, claims, replace(CONFIG, batch_size=1), set(), FakeTokenizer())
        with pytest.raises(UserError, match="tasks in a row died"):
            while task := plan.next_task():
                plan.settle(task, Death("out of memory"))
        assert plan.failed and plan.lasting_failures() == []
        task = plan.next_task()
        assert task is not None
        plan.settle(task, Encoded([0], np.zeros((1, 6), np.uint16), []))
        assert len(plan.lasting_failures()) == len(plan.failed), "others die, so it is the pictures"
