"""The COCO-format reader, on small files and on real photographs where they are at hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waiting import HOLD, held, kill, wait_until

from diptych.features.datasets import coco
from diptych.features.datasets.coco import CocoConfig, CocoSource, read_coco
from diptych.features.errors import UserError
from diptych.features.files import sha256_of
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
        {
            "image_id": 1,
            "category_id": 7,
            "bbox": [0, 0, 30, 20],
            "iscrowd": 1,
            "segmentation": {"counts": []},
        },
        {"image_id": 2, "category_id": 7, "bbox": [5, 5, 0, 9], "iscrowd": 0},
    ]
    write(folder / "captions.json", {"images": images, "annotations": captions})
    categories = [{"id": 7, "name": "kite"}]
    write(folder / "instances.json", {"images": images, "annotations": boxes, "categories": categories})
    return CocoSource("train", folder / "images", folder / "captions.json", folder / "instances.json")


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def config(*sources: CocoSource, **changes: Any) -> CocoConfig:
    values: dict[str, Any] = {
        "sources": list(sources),
        "karpathy": None,
        "images": None,
        "instances": [],
        "restval": False,
        "limit": None,
    }
    return CocoConfig(**{**values, **changes})


def test_captions_and_boxes_reach_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(read_coco(config(make(tmp_path)), 0))
    write_manifest(rows, tmp_path / "manifest.parquet")
    assert [row["image_id"] for row in rows] == ["000000000001", "000000000002", "000000000003"]
    assert rows[0]["captions"] == ["A picture 0 .", "A picture 1 ."]
    # no crowd, no line without area, largest first; an image without objects is known to have none
    assert [o["bbox"] for o in rows[0]["objects"]] == [[5, 5, 14, 14], [1, 2, 4, 6]]
    assert rows[1]["objects"] == rows[2]["objects"] == []
    assert "coco: left out 1 crowd regions, 1 boxes without area" in capsys.readouterr().err
    assert (rows[0]["width"], rows[0]["height"], Path(rows[0]["path"]).is_absolute()) == (30, 20, True)


def test_captions_become_one_line_and_empty_ones_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path)

    def edit(content: Any) -> None:
        texts = ["A man\nriding\r\n a  wave.\n", " \n", "Zwei Männer\t!", ".", "Is it?", "a dog"]
        for annotation, text in zip(content["annotations"], texts, strict=True):
            annotation["caption"] = text

    change(source.captions, edit)
    captions = [row["captions"] for row in read_coco(config(source), 0)]
    assert captions == [["A man riding a wave."], ["Zwei Männer !"], ["Is it?", "a dog ."]]
    assert "2 empty captions" in capsys.readouterr().err
    change(source.captions, lambda content: content["annotations"][0].update(caption="..."))
    with pytest.raises(UserError, match=r"1 of 3 images have no caption, the first is 000000000001"):
        list(read_coco(config(source), 0))


def test_objects_are_unknown_where_no_file_lists_the_image(tmp_path: Path) -> None:
    source = make(tmp_path)
    assert source.instances is not None
    change(source.instances, lambda content: content["images"].pop())  # image 3
    assert [row["objects"] is None for row in read_coco(config(source), 0)] == [False, False, True]
    change(source.instances, lambda content: content.pop("images"))  # then only annotations say what is known
    assert [row["objects"] is None for row in read_coco(config(source), 0)] == [False, False, True]
    change(source.instances, lambda content: content.update(annotations=[]))
    with pytest.raises(UserError, match=r"instances\.json: none of its 0 images"):
        list(read_coco(config(source), 0))


def test_val_can_be_shared_between_val_and_test(tmp_path: Path) -> None:
    source = make(tmp_path)
    shared = CocoSource("val/test", source.images, source.captions, None)
    rows = list(read_coco(config(shared), 0))
    assert sorted(row["split"] for row in rows) == ["test", "val", "val"]
    assert rows == list(read_coco(config(shared), 0)) and rows[0]["objects"] is None
    assert len({next(read_coco(config(shared), seed))["image_id"] for seed in range(9)}) > 1


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
    write(tmp_path / "dataset_coco.json", {"images": images})
    karpathy = {"karpathy": tmp_path / "dataset_coco.json", "images": tmp_path}
    assert [r["split"] for r in read_coco(config(**karpathy), 0)] == ["restval", "test", "train"]
    assert [r["split"] for r in read_coco(config(**karpathy, restval=True), 0)] == ["test", "train", "train"]
    boxed = list(read_coco(config(**karpathy, restval=True, instances=[source.instances]), 0))
    assert {r["image_id"][-1]: len(r["objects"]) for r in boxed} == {"1": 2, "2": 0, "3": 0}
    # Flickr's file by Karpathy has neither COCO's ids nor folders
    for number, image in enumerate(images):
        del image["cocoid"], image["filepath"]
        image["imgid"] = number
    flickr = {
        "karpathy": write(tmp_path / "dataset_flickr30k.json", {"images": images}),
        "images": tmp_path / "images",
    }
    assert {r["image_id"] for r in read_coco(config(**flickr), 0)} == {
        "000000000000",
        "000000000001",
        "000000000002",
    }


def test_a_limit_draws_a_few_of_every_split_and_more_of_the_same(tmp_path: Path) -> None:
    source = make(tmp_path)

    def ids(limit: int | None) -> list[str]:
        return [row["image_id"] for row in read_coco(config(source, limit=limit), 3)]

    assert len(ids(1)) == 1 and set(ids(1)) < set(ids(2)) < set(ids(None)) and ids(9) == ids(None)


def test_mistakes_name_file_and_mend(tmp_path: Path) -> None:
    source = make(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: no such image folder.*dataset\.coco\.sources"):
        list(read_coco(config(CocoSource("train", tmp_path / "nowhere", source.captions, None)), 0))
    with pytest.raises(UserError, match=r"absent\.json: no such annotation file"):
        list(read_coco(config(CocoSource("train", source.images, tmp_path / "absent.json", None)), 0))
    (tmp_path / "half.json").write_text(source.captions.read_text()[:50])
    with pytest.raises(UserError, match=r"half\.json: not valid JSON"):
        list(read_coco(config(CocoSource("train", source.images, tmp_path / "half.json", None)), 0))
    for name in ("2.jpg", "3.jpg"):
        (source.images / name).unlink()
    with pytest.raises(
        UserError,
        match=r"captions\.json: 2 of 3 images are missing on disk, the first is 000000000002, .*2\.jpg; complete",
    ):
        list(read_coco(config(source), 0))
    (source.images / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"3 of 3 images are missing .* the same split and year"):
        list(read_coco(config(source), 0))


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("captions", lambda c: c["images"].append(c["images"][1]),
         r"captions\.json: 1 image ids are listed more than once, the first is 000000000002"),
        ("captions", lambda c: c["images"].pop(0), r"a caption names image 1, which the file does not list, the first of 1"),
        ("captions", lambda c: c["annotations"][0].update(caption=None),
         r"captions\.json: 1 of 6 annotations cannot be used, more than 1%: 1 whose caption is not text \(id 10; the first is None"),
        ("captions", lambda c: c["images"][0].update(file_name=None),
         r"captions\.json: 1 of 3 images cannot be used, more than 1%: 1 whose file_name is not text \(id 1;"),
        ("captions", lambda c: c.pop("annotations"), r"captions\.json: not COCO captions \(no 'annotations'"),
        ("instances", lambda c: c.pop("categories"), r"instances\.json: not COCO instances \(no 'categories'\); expected categories"),
        ("instances", lambda c: c["annotations"][0].update(bbox=[1, 2]),
         r"instances\.json: 1 of 4 annotations cannot be used, more than 1%: 1 whose bbox is not four numbers \(id none, entry 0; the first is \[1, 2\]"),
        ("instances", lambda c: c["annotations"][0].update(category_id=8),
         r"instances\.json: 1 of 4 annotations cannot be used, more than 1%: 1 whose category the file does not list \(id none, entry 0; the first is 8"),
        ("instances", lambda c: c["images"][1].update(width=20, height=30),
         r"1 of 3 images are not of the size .* first is .*2\.jpg: 30 x 20 instead of 20 x 30"),
        ("instances", lambda c: c.update(images=[{"id": 9}], annotations=[]),
         r"instances\.json: none of its 1 images is among those with captions"),
    ],
)  # fmt: skip
def test_annotations_that_do_not_fit_are_named(tmp_path: Path, file: str, edit: Any, words: str) -> None:
    source = make(tmp_path)
    change(tmp_path / f"{file}.json", edit)
    with pytest.raises(UserError, match=words):
        list(read_coco(config(source), 0))


def test_a_source_given_twice_is_found_before_anything_is_hashed(tmp_path: Path, monkeypatch: Any) -> None:
    source = make(tmp_path)
    again = CocoSource("val", source.images, source.captions, None)
    monkeypatch.setattr(coco, "_look_at", lambda path: pytest.fail("read a picture"))
    with pytest.raises(UserError, match="3 image ids are listed more than once"):
        list(read_coco(config(source, again), 0))


def test_what_cannot_work_is_refused_with_the_parameters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give `karpathy` or `sources`"):
        config()
    with pytest.raises(UserError, match="`karpathy` needs `images`"):
        config(karpathy=tmp_path / "dataset_coco.json")
    with pytest.raises(UserError, match="limit must be at least 1 or null, is 0"):
        config(karpathy=tmp_path / "dataset_coco.json", images=tmp_path, limit=0)
    with pytest.raises(UserError, match="split 'test/val': use letters"):
        CocoSource("test/val", tmp_path, tmp_path, None)


def test_relative_folders_give_paths_relative_to_the_manifest(tmp_path: Path, monkeypatch: Any) -> None:
    make(tmp_path / "clone" / "data" / "coco")
    monkeypatch.chdir(tmp_path / "clone")
    folder = Path("data/coco")
    source = CocoSource("train", folder / "images", folder / "captions.json", None)
    rows = list(read_coco(config(source), 0, manifest_folder=Path("data/dataset")))
    assert [row["path"] for row in rows] == [f"../coco/images/{n}.jpg" for n in (1, 2, 3)]
    assert (tmp_path / "clone/data/dataset" / rows[0]["path"]).resolve().is_file()
    absolute = CocoSource("train", folder.absolute() / "images", folder / "captions.json", None)
    assert next(read_coco(config(absolute), 0, manifest_folder=Path("data/dataset")))["path"].startswith("/")


def read_counting(
    source: CocoSource, facts: Path, monkeypatch: Any, **changes: Any
) -> tuple[list[Any], list[str]]:
    """The rows, and the names of the pictures that were opened for them."""
    opened: list[str] = []
    look = coco._look_at

    def count(path: Path) -> Any:
        opened.append(path.name)
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(coco, "_look_at", count)
        rows = list(read_coco(config(source, **changes), 0, facts))
    return rows, sorted(opened)


def test_no_picture_is_hashed_twice(tmp_path: Path, monkeypatch: Any) -> None:
    source, facts = make(tmp_path), tmp_path / "cache" / "files.jsonl"
    plain = list(read_coco(config(source), 0))
    _, opened = read_counting(source, facts, monkeypatch, limit=2)
    assert len(opened) == 2
    rows, rest = read_counting(source, facts, monkeypatch)
    assert rows == plain and len(rest) == 1 and sorted(opened + rest) == ["1.jpg", "2.jpg", "3.jpg"]
    assert read_counting(source, facts, monkeypatch) == (plain, [])

    # another content has another size or time
    Image.new("RGB", (30, 20), (0, 250, 0)).save(source.images / "2.jpg")
    changed, opened = read_counting(source, facts, monkeypatch)
    assert opened == ["2.jpg"] and changed[1]["sha256"] != plain[1]["sha256"]
    assert changed == list(read_coco(config(source), 0))


def test_a_torn_record_is_read_again_and_spoils_no_other(tmp_path: Path, monkeypatch: Any) -> None:
    source, facts = make(tmp_path), tmp_path / "files.jsonl"
    plain, _ = read_counting(source, facts, monkeypatch)
    whole = facts.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1, 7):
        facts.write_bytes(whole[:-cut])
        rows, opened = read_counting(source, facts, monkeypatch)
        assert rows == plain and opened == ([] if cut == 1 else ["3.jpg"]), cut
        assert read_counting(source, facts, monkeypatch) == (plain, [])
    facts.write_bytes(b'\xff\x00[1, 2]\n[1, "x", 3, 4, 5]\nnull\n' + whole.replace(b"[1,", b"[0,", 1))
    rows, opened = read_counting(source, facts, monkeypatch)
    assert rows == plain and opened == ["1.jpg"]  # the record of another version


def test_a_killed_run_keeps_what_it_hashed(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(300)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(folder / name)
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    captions = [{"image_id": n, "caption": "a tile"} for n in range(len(names))]
    file = write(tmp_path / "captions.json", {"images": images, "annotations": captions})
    source, facts = CocoSource("train", folder, file, None), tmp_path / "files.jsonl"
    script = f"""
import sys
from pathlib import Path
from diptych.features.datasets import coco
import threading
look, first = coco._look_at, threading.Lock()
def look_or_wait(path):
    if path.name >= "150.png":
        with first:  # pictures are looked at by several threads; one is enough to hold
            {HOLD}
    return look(path)
coco._look_at = look_or_wait
source = coco.CocoSource("train", Path({str(folder)!r}), Path({str(file)!r}), None)
list(coco.read_coco(coco.CocoConfig([source], None, None, [], False, None), 0, Path({str(facts)!r})))
"""
    run = held(script)
    wait_until(lambda: facts.read_bytes().count(b"\n") >= 150, run)
    kill(run)
    kept = facts.read_bytes().count(b"\n")
    assert kept == 150, "the run was to be killed in its middle"
    rows, opened = read_counting(source, facts, monkeypatch)
    assert opened == names[kept:] and rows == list(read_coco(config(source), 0))


def test_an_unreadable_picture_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    source = make(tmp_path)
    look = coco._look_at

    def refuse(path: Path) -> Any:
        if path.name == "2.jpg":
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(coco, "_look_at", refuse)
    with pytest.raises(UserError, match=r"2\.jpg, which cannot be read \(Permission denied\)"):
        list(read_coco(config(source), 0))


def test_a_damaged_picture_is_left_to_extraction(tmp_path: Path) -> None:
    source = make(tmp_path)
    (source.images / "2.jpg").write_bytes(b"no picture")
    rows = list(read_coco(config(source), 0))
    assert [(row["width"], row["height"]) for row in rows] == [(30, 20), (0, 0), (30, 20)]


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="../shared/coco-mini is not here")
def test_real_photographs(tmp_path: Path, monkeypatch: Any) -> None:
    notes = COCO_MINI / "annotations"
    sources = [
        CocoSource(split, COCO_MINI / name, notes / f"captions_{name}.json", notes / f"instances_{name}.json")
        for split, name in (("train", "train2017"), ("val/test", "val2017"))
    ]
    rows = list(read_coco(config(*sources), 0, tmp_path / "files.jsonl"))
    assert [sum(r["split"] == s for r in rows) for s in ("train", "val", "test")] == [80, 40, 39]
    assert all(len(r["captions"]) >= 5 and min(r["width"], r["height"]) > 100 for r in rows)
    boxes = np.array([o["bbox"] for r in rows for o in r["objects"]])
    assert (boxes[:, 2:] > boxes[:, :2]).all() and len({o["label"] for r in rows for o in r["objects"]}) > 40
    assert (tmp_path / "files.jsonl").read_bytes().count(b"\n") == 159
    monkeypatch.setattr(coco, "_look_at", lambda path: pytest.fail("read a picture again"))
    assert rows == list(read_coco(config(*sources), 0, tmp_path / "files.jsonl"))
    # captions of one split with the pictures, or the boxes, of the other
    train = sources[0]
    with pytest.raises(UserError, match=r"captions_train2017\.json: 80 of 80 images are missing on disk"):
        list(read_coco(config(CocoSource("train", COCO_MINI / "val2017", train.captions, None)), 0))
    with pytest.raises(UserError, match=r"instances_val2017\.json: none of its 79 images"):
        list(read_coco(config(CocoSource("train", train.images, train.captions, sources[1].instances)), 0))


def test_a_file_under_two_spellings_is_read_once_and_shifts_no_other(
    tmp_path: Path, monkeypatch: Any
) -> None:
    source, facts = make(tmp_path), tmp_path / "files.jsonl"
    change(source.captions, lambda content: content["images"][1].update(file_name="../images/1.jpg"))
    rows, opened = read_counting(replace(source, instances=None), facts, monkeypatch)
    assert opened == ["1.jpg", "3.jpg"]
    for row in rows:
        assert row["sha256"] == sha256_of(Path(row["path"]))
        assert (row["width"], row["height"]) == Image.open(row["path"]).size
