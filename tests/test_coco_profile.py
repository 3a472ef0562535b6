"""The coco profile's own parameters on COCO 2014's layout: its splits, its pictures, the papers' evaluation sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image
from pipeline_clone import Clone

from diptych.features.datasets.coco import read_coco
from diptych.features.errors import UserError
from diptych.features.manifest import read_manifest, resolve_image
from pipelines.dataset import DatasetParams
from pipelines.measuring.drawn import draw
from pipelines.measuring.generate_params import EvaluationSet, GenerateParams
from pipelines.runner.params import ParameterError, read_params, read_section
from pipelines.runner.profile import write_profile

T = TypeVar("T")
TRAIN = [9, 25, 30, 34, 36, 49, 61, 64, 71, 72, 77, 78]
VAL = [42, 73, 74, 133, 136, 139, 143, 164, 192, 196, 208, 241, 257, 283, 285, 294, 328, 338]
KARPATHY = {42: "test", 73: "test", 74: "test", 133: "val", 136: "val", 139: "val"}  # the others are restval


def section(kind: type[T], name: str, folder: Path, *overrides: str) -> T:
    """A section of the coco profile with the dataset in `folder`."""
    target = folder.parent / "params.yaml"
    write_profile("coco", target, [f"dataset.source={folder}", *overrides])
    return read_section(kind, name, read_params(target), target)


def read(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """What the profile makes of the dataset in `folder`."""
    config = section(DatasetParams, "dataset", folder, *overrides).coco
    assert config is not None
    return list(read_coco(config, 0))


def ids(rows: Sequence[dict[str, Any]], split: str) -> set[int]:
    return {int(row["image_id"]) for row in rows if row["split"] == split}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO 2014 in small: the folders, file names and annotation files as they are downloaded."""
    folder = tmp_path / "coco"
    make_coco(folder)
    return folder


def make_coco(folder: Path) -> None:
    notes = folder / "annotations"
    notes.mkdir(parents=True)
    karpathy = []
    for year, numbers in (("train2014", TRAIN), ("val2014", VAL)):
        (folder / year).mkdir()
        images, captions, boxes = [], [], []
        for number in numbers:
            name, size = f"COCO_{year}_{number:012d}.jpg", (64 + number % 7, 48 + number % 5)
            pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / year / name)
            images.append(
                {
                    "license": 3, "file_name": name, "coco_url": f"http://mscoco.org/images/{number}",
                    "height": size[1], "width": size[0], "date_captured": "2013-11-14 16:28:13",
                    "flickr_url": "http://example.org/1.jpg", "id": number,
                }
            )  # fmt: skip
            texts = [f"Picture {number} seen for the {n}. time.\n" for n in range(5)]
            sentids = [number * 10 + n for n in range(5)]
            captions += [
                {"image_id": number, "id": i, "caption": t} for i, t in zip(sentids, texts, strict=True)
            ]
            if number % 3:
                boxes.append(
                    {
                        "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]], "area": 32.0, "iscrowd": number % 2,
                        "image_id": number, "bbox": [1.0, 1.0, 8.0, 8.0], "category_id": 18, "id": number,
                    }
                )  # fmt: skip
            karpathy.append(
                {
                    "filepath": year,
                    "sentids": sentids,
                    "filename": name,
                    "imgid": len(karpathy),
                    "split": "train" if year == "train2014" else KARPATHY.get(number, "restval"),
                    "sentences": [
                        {"tokens": t.lower().split(), "raw": t, "imgid": len(karpathy), "sentid": i}
                        for i, t in zip(sentids, texts, strict=True)
                    ],
                    "cocoid": number,
                }
            )
        head = {"info": {"year": 2014, "version": "1.0"}, "licenses": [], "images": images}
        categories = [{"supercategory": "animal", "id": 18, "name": "dog"}]
        write(notes / f"captions_{year}.json", {**head, "annotations": captions})
        write(notes / f"instances_{year}.json", {**head, "annotations": boxes, "categories": categories})
    write(notes / "dataset_coco.json", {"images": karpathy, "dataset": "coco"})


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_karpathys_splits_train_on_the_official_train_split(coco: Path) -> None:
    rows = read(coco)
    assert Counter(row["split"] for row in rows) == {"train": 12, "val": 3, "test": 3, "restval": 12}
    assert ids(rows, "train") == set(TRAIN), "no picture of val2014 is trained on"
    assert {int(r["image_id"]): r["split"] for r in rows if r["split"] in ("val", "test")} == KARPATHY
    assert all(len(row["captions"]) == 5 and row["captions"][0].endswith("time.") for row in rows)
    for row in rows:
        number = int(row["image_id"])
        assert (row["width"], row["height"]) == (64 + number % 7, 48 + number % 5)
        wanted = (
            []
            if number % 3 == 0 or number % 2
            else [{"bbox": [1, 1, 9, 9], "label": "dog", "attributes": []}]
        )
        assert row["objects"] == wanted, "of train2014 and of val2014, without crowds"
    assert [len(ids(read(coco, "dataset.coco.limit=2"), s)) for s in ("train", "val", "restval")] == [2, 2, 2]


def test_restval_can_be_trained_on(coco: Path) -> None:
    rows = read(coco, "dataset.coco.restval=true")
    assert ids(rows, "train") == {*TRAIN, *VAL} - KARPATHY.keys()
    assert ids(rows, "test") | ids(rows, "val") == KARPATHY.keys() and len(rows) == 30


def test_the_official_splits_need_no_file_of_karpathy(coco: Path) -> None:
    karpathys = {row["image_id"]: row for row in read(coco)}
    (coco / "annotations/dataset_coco.json").unlink()
    rows = read(coco, "dataset.coco.karpathy=null")
    assert ids(rows, "train") == set(TRAIN)
    assert len(ids(rows, "val")) == len(ids(rows, "test")) == 9 and ids(rows, "val") | ids(
        rows, "test"
    ) == set(VAL)
    for row in rows:  # all but the split is the same, whichever file the captions come from
        assert {**row, "split": ""} == {**karpathys[row["image_id"]], "split": ""}


def test_what_is_missing_is_said_once_for_all(coco: Path) -> None:
    for number in (74, 285, 34):
        year = "train2014" if number in TRAIN else "val2014"
        (coco / year / f"COCO_{year}_{number:012d}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"dataset_coco\.json: 3 of 30 images are missing on disk, the first is 0000"
    ):
        read(coco)
    (coco / "annotations/dataset_coco.json").unlink()
    with pytest.raises(UserError, match=r"annotations/dataset_coco\.json: no such annotation file"):
        read(coco)


def test_the_stage_reads_each_picture_once_and_its_manifest_may_move(clone: Clone) -> None:
    make_coco(clone.folder / "data/coco")
    clone.set_params(profile="coco")
    done = clone.run("python", "-m", "pipelines.dataset")
    assert done.returncode == 0, done.stderr
    facts = clone.folder / ".cache/files.jsonl"
    assert len(facts.read_text().splitlines()) == 30

    moved = clone.copy(clone.folder.parent / "elsewhere")
    manifest = moved.folder / "data/dataset/manifest.parquet"
    rows = read_manifest(manifest).to_pylist()
    assert len(rows) == 30
    for row in rows:
        file = resolve_image(manifest, row["path"]).resolve()
        assert file.is_file() and file.is_relative_to(moved.folder.resolve())

    before = manifest.read_bytes()
    clone.set_params("dataset.coco.limit=2", profile="coco")
    assert clone.run("python", "-m", "pipelines.dataset").returncode == 0
    assert len(read_manifest(clone.folder / "data/dataset/manifest.parquet")) == 8
    clone.set_params(profile="coco")
    assert clone.run("python", "-m", "pipelines.dataset").returncode == 0
    assert (clone.folder / "data/dataset/manifest.parquet").read_bytes() == before
    assert len(facts.read_text().splitlines()) == 30, "nothing was read a second time"


def of_coco_2014() -> dict[str, list[str]]:
    """As many ids as Karpathy's splits of COCO 2014 have."""
    sizes = {"train": 82_783, "val": 5_000, "test": 5_000, "restval": 30_504}
    numbers = np.random.default_rng(1).permutation(600_000)[: sum(sizes.values())]
    parts = np.split(numbers, np.cumsum(list(sizes.values()))[:-1])
    return {split: [f"{n:012d}" for n in part] for split, part in zip(sizes, parts, strict=True)}


def evaluation_set(folder: Path, *overrides: str) -> EvaluationSet:
    return section(GenerateParams, "generate", folder, *overrides).sets["test"]


def test_the_papers_evaluation_sets(tmp_path: Path) -> None:
    keys, wanted = of_coco_2014(), evaluation_set(tmp_path / "coco")
    assert draw(wanted.caption, keys, 0) == set(keys["test"]), "Karpathy's 5,000"
    painted = draw(wanted.paint, keys, 0)
    val2014 = {*keys["val"], *keys["test"], *keys["restval"]}
    assert len(painted) == 30_000 and painted < val2014 and len(val2014) == 40_504
    for split in ("val", "test", "restval"):  # none is preferred
        assert abs(len(painted & set(keys[split])) / len(keys[split]) - 30_000 / 40_504) < 0.02
    assert draw(wanted.paint, keys, 0) == painted and draw(wanted.paint, keys, 1) != painted

    # the same 30,000 however val2014 is divided
    halves = sorted(val2014)
    official = {"train": keys["train"], "val": halves[::2], "test": halves[1::2]}
    other = evaluation_set(tmp_path / "coco", "generate.sets.test.paint.splits=[val,test]")
    assert draw(other.paint, official, 0) == painted

    # one picture that could not be read: one other comes in, all else stays
    lost = sorted(painted & set(keys["restval"]))[7]
    fewer = {**keys, "restval": [key for key in keys["restval"] if key != lost]}
    assert len(draw(wanted.paint, fewer, 0) ^ painted) == 2 and len(draw(wanted.paint, fewer, 0)) == 30_000


def test_sets_that_cannot_be_evaluated_are_refused(tmp_path: Path) -> None:
    for override, words in (
        ("generate.sets.test.paint.limit=0", "generate.sets.test.paint: limit must be at least 1, is 0"),
        ("~generate.sets.test", "sets: one has to be named test"),
        ("+generate.sets.a-b=${generate.sets.test}", "sets.a-b: a name has letters"),
        ("+generate.sets.test.draw=3", "generate.sets.test.draw: unknown key"),
    ):
        with pytest.raises(ParameterError, match=words):
            section(GenerateParams, "generate", tmp_path / "coco", override)
