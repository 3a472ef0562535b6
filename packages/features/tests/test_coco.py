"""The COCO-format reader, on small files and on real photographs where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.features.datasets.coco import CocoConfig, CocoSource, read_coco
from diptych.features.errors import UserError
from diptych.features.manifest import write_manifest

COCO_MINI = Path(__file__).parents[4] / "shared" / "coco-mini"


def make(folder: Path) -> CocoSource:
    (folder / "images").mkdir(parents=True)
    for number in (1, 2, 3):
        Image.new("RGB", (30, 20), (number * 40, 0, 0)).save(folder / "images" / f"{number}.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 30, "height": 20} for n in (1, 2, 3)]
    captions = [
        {"image_id": n, "id": n * 10 + k, "caption": f" A  picture {k}"} for n in (1, 2, 3) for k in range(2)
    ]
    boxes = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"image_id": 1, "category_id": 7, "bbox": [5, 5, 9, 9], "iscrowd": 0},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 30, 20], "iscrowd": 1},
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "kite"}]})
    )
    return CocoSource("train", folder / "images", folder / "captions.json", folder / "instances.json")


def config(*sources: CocoSource, **changes: object) -> CocoConfig:
    values = {
        "sources": list(sources),
        "karpathy": None,
        "images": None,
        "instances": [],
        "restval": False,
        "limit": None,
    }
    return CocoConfig(**{**values, **changes})


def test_captions_and_boxes_reach_the_manifest(tmp_path: Path) -> None:
    rows = list(read_coco(config(make(tmp_path)), 0))
    write_manifest(rows, tmp_path / "manifest.parquet")
    assert [row["image_id"] for row in rows] == ["000000000001", "000000000002", "000000000003"]
    assert rows[0]["captions"] == ["A picture 0 .", "A picture 1 ."]
    assert [o["bbox"] for o in rows[0]["objects"]] == [
        [5, 5, 14, 14],
        [1, 2, 4, 6],
    ]  # no crowd, largest first
    assert (rows[0]["width"], rows[0]["height"], Path(rows[0]["path"]).is_absolute()) == (30, 20, True)


def test_val_can_be_shared_between_val_and_test(tmp_path: Path) -> None:
    source = make(tmp_path)
    shared = CocoSource("val/test", source.images, source.captions, None)
    rows = list(read_coco(config(shared), 0))
    assert sorted(row["split"] for row in rows) == ["test", "val", "val"]
    assert rows == list(read_coco(config(shared), 0)) and rows[0]["objects"] is None


def test_karpathys_splits(tmp_path: Path) -> None:
    source = make(tmp_path)
    images = [
        {
            "cocoid": n,
            "filepath": "images",
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": "A kite."}],
        }
        for n, split in ((1, "train"), (2, "restval"), (3, "test"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    karpathy = {"karpathy": tmp_path / "dataset_coco.json", "images": tmp_path}
    assert [r["split"] for r in read_coco(config(**karpathy), 0)] == ["test", "train"]
    assert [r["split"] for r in read_coco(config(**karpathy, restval=True), 0)] == ["test", "train", "train"]
    boxed = list(read_coco(config(**karpathy, restval=True, instances=[source.instances]), 0))
    assert {r["image_id"][-1]: len(r["objects"]) for r in boxed} == {"1": 2, "2": 0, "3": 0}


def test_mistakes_name_file_and_mend(tmp_path: Path) -> None:
    source = make(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: no such image folder.*dataset\.coco\.sources"):
        list(read_coco(config(CocoSource("train", tmp_path / "nowhere", source.captions, None)), 0))
    with pytest.raises(UserError, match=r"absent\.json: no such annotation file"):
        list(read_coco(config(CocoSource("train", source.images, tmp_path / "absent.json", None)), 0))
    (tmp_path / "half.json").write_text(source.captions.read_text()[:50])
    with pytest.raises(UserError, match=r"half\.json: not valid JSON"):
        list(read_coco(config(CocoSource("train", source.images, tmp_path / "half.json", None)), 0))
    (source.images / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"captions\.json: image 000000000002 is .*2\.jpg, which is missing"):
        list(read_coco(config(source), 0))


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="../shared/coco-mini is not here")
def test_real_photographs() -> None:
    notes = COCO_MINI / "annotations"
    sources = [
        CocoSource(split, COCO_MINI / name, notes / f"captions_{name}.json", notes / f"instances_{name}.json")
        for split, name in (("train", "train2017"), ("val/test", "val2017"))
    ]
    rows = list(read_coco(config(*sources), 0))
    assert [sum(r["split"] == s for r in rows) for s in ("train", "val", "test")] == [80, 40, 39]
    assert all(len(r["captions"]) >= 5 and min(r["width"], r["height"]) > 100 for r in rows)
    boxes = np.array([o["bbox"] for r in rows for o in r["objects"]])
    assert (boxes[:, 2:] > boxes[:, :2]).all() and len({o["label"] for r in rows for o in r["objects"]}) > 40
