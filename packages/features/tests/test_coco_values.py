"""Annotation files as people have them: odd ids, values that cannot be, rotated photographs, other files in their place."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.features.datasets.coco import CocoConfig, CocoSource, read_coco
from diptych.features.errors import UserError
from diptych.features.ids import read_id
from diptych.features.images import read_image
from diptych.features.manifest import read_manifest, write_manifest


def make(folder: Path, count: int = 3, boxes: int = 1) -> CocoSource:
    """Pictures of 30 x 20 with the ids 1, 2, ..., two captions each, and so many boxes each."""
    (folder / "images").mkdir(parents=True)
    images, captions, annotations = [], [], []
    for n in range(1, count + 1):
        Image.new("RGB", (30, 20), (n % 250, 0, 0)).save(folder / "images" / f"{n}.jpg")
        images.append({"id": n, "file_name": f"{n}.jpg", "width": 30, "height": 20})
        captions += [{"image_id": n, "id": n * 10 + k, "caption": f"picture {n}"} for k in range(2)]
        annotations += [
            {"id": n * 1000 + k, "image_id": n, "category_id": 7, "bbox": [1, 2, 10, 8], "iscrowd": 0}
            for k in range(boxes)
        ]
    write(folder / "captions.json", {"images": images, "annotations": captions})
    categories = [{"id": 7, "name": "kite"}, {"id": 8, "name": "dog"}]
    write(folder / "instances.json", {"images": images, "annotations": annotations, "categories": categories})
    return CocoSource("train", folder / "images", folder / "captions.json", folder / "instances.json")


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def change(path: Path | None, edit: Callable[[Any], Any]) -> None:
    assert path is not None
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def read(*sources: CocoSource, **changes: Any) -> list[dict[str, Any]]:
    values: dict[str, Any] = {
        "sources": list(sources), "karpathy": None, "images": None, "instances": [], "restval": False, "limit": None
    }  # fmt: skip
    return list(read_coco(CocoConfig(**{**values, **changes}), 0))


# --- ids


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (139, "139"), ("139", "139"), ("000000000139", "139"), (139.0, "139"), ("139.0", "139"), (" 139 ", "139"),
        (0, "0"), ("000", "0"), ("-0", "0"), (-5, "-5"), ("-05", "-5"), ("kite", "kite"), ("1a", "1a"), ("1.5", "1.5"),
        (2**53 + 1, str(2**53 + 1)), ("9" * 80, "9" * 80),
    ],
)  # fmt: skip
def test_one_id_however_it_is_written(written: Any, read_as: str) -> None:
    assert read_id(written) == read_as


@pytest.mark.parametrize(
    "value", [None, True, [], {}, "", "  ", 1.5, float("nan"), float("inf"), 1e60, 10**80, "x" * 81]
)
def test_what_is_no_id(value: Any) -> None:
    with pytest.raises(ValueError, match=r"number|digits|characters|empty"):
        read_id(value)


def test_a_number_that_python_does_not_write_is_no_id() -> None:
    with pytest.raises(ValueError, match="digits"):
        read_id(10**5000)


@pytest.mark.parametrize("form", [str, float, lambda n: f"{n:012d}", lambda n: f"{n}.0"])
@pytest.mark.parametrize("place", ["images", "annotations", "instances"])
def test_ids_of_one_list_may_be_written_otherwise_than_in_the_other(
    tmp_path: Path, form: Callable[[int], Any], place: str
) -> None:
    source = make(tmp_path)
    plain = read(source)
    if place == "instances":
        change(source.instances, lambda c: [a.update(image_id=form(a["image_id"])) for a in c["annotations"]])
        change(source.instances, lambda c: [a.update(category_id=form(7)) for a in c["annotations"]])
    else:
        key = "id" if place == "images" else "image_id"
        change(source.captions, lambda c: [row.update({key: form(row[key])}) for row in c[place]])
    assert read(source) == plain and plain[0]["image_id"] == "000000000001"
    assert plain[0]["objects"] == [{"bbox": [1, 2, 11, 10], "label": "kite", "attributes": []}]


def test_numbers_and_text_are_shared_between_val_and_test_alike(tmp_path: Path) -> None:
    source = make(tmp_path, 12)
    shared = CocoSource("val/test", source.images, source.captions, None)
    plain = read(shared)
    change(source.captions, lambda c: c["images"][1].update(id="2"))  # [1, "2", 3, ...]
    assert read(shared) == plain
    change(source.captions, lambda c: c["images"][1].update(id="two"))
    change(
        source.captions, lambda c: [a.update(image_id="two") for a in c["annotations"] if a["image_id"] == 2]
    )
    rows = read(shared)
    assert {row["split"] for row in rows} == {"val", "test"} and "two" in {row["image_id"] for row in rows}


def test_two_spellings_of_one_id_are_one_image_too_many(tmp_path: Path) -> None:
    source = make(tmp_path)
    change(source.captions, lambda c: c["images"][1].update(id="001"))
    change(source.captions, lambda c: c.update(annotations=c["annotations"][:2]))
    with pytest.raises(UserError, match=r"1 image ids are listed more than once, the first is 000000000001"):
        read(source)


# --- values


def odd_values() -> list[tuple[dict[str, Any], str]]:
    """What one annotation may have, and what is said of it."""
    return [
        ({"bbox": []}, r"bbox is not four numbers \(id 1000; the first is \[\]\)"),
        ({"bbox": None}, "bbox is not four numbers"),
        ({"bbox": "1 2 3 4"}, "bbox is not four numbers"),
        ({"bbox": ["1", 2, 3, 4]}, "bbox is not four numbers"),
        ({"bbox": [True, 2, 3, 4]}, "bbox is not four numbers"),
        ({"bbox": [float("nan"), 0, 1, 1]}, "bbox is not four numbers"),
        ({"bbox": [0, 0, float("inf"), 1]}, "bbox has an impossible size"),
        ({"bbox": [0, 0, 1e60, 1e60]}, "bbox has an impossible size"),
        ({"bbox": [0, 0, 10**400, 1]}, "bbox has an impossible size"),
        ({"bbox": [-1e60, 0, 5, 5]}, "bbox has an impossible size"),
        ({"bbox": [40, 2, 5, 5]}, "bbox lies outside of its picture .*40 2 to 45 7 in 30 x 20"),
        ({"bbox": [0, 0, 500, 500]}, "bbox lies outside of its picture"),
        ({"bbox": [-9, 2, 10, 8]}, "bbox lies outside of its picture"),
        ({"category_id": 9}, "whose category the file does not list"),
        ({"category_id": None}, "category_id cannot be used"),
        ({"category_id": 8}, "category's name is not text .*the first is None"),
        ({"image_id": 1.5}, "image_id cannot be used .*no whole number"),
        ({"image_id": 10**100}, "image_id cannot be used .*digits"),
        ({"image_id": {}}, "image_id cannot be used"),
        ({"iscrowd": "yes"}, "iscrowd is neither 0 nor 1"),
        ({"iscrowd": []}, "iscrowd is neither 0 nor 1"),
    ]


@pytest.mark.parametrize(("values", "words"), odd_values())
def test_one_bad_annotation_of_many_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], words: str
) -> None:
    source = make(tmp_path, 2, boxes=100)
    change(source.instances, lambda c: c["categories"][1].update(name=None))
    change(source.instances, lambda c: c["annotations"][0].update(values))
    rows = read(source)
    assert [len(row["objects"]) for row in rows] == [99, 100]
    write_manifest(rows, tmp_path / "manifest.parquet")
    said = capsys.readouterr().err
    assert "left out 1 of 200" in said
    assert re.search(rf"instances\.json: .*{words}", said), said


@pytest.mark.parametrize(("values", "words"), odd_values())
def test_many_bad_annotations_refuse_the_file(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    source = make(tmp_path, 1, boxes=3)
    change(source.instances, lambda c: c["categories"][1].update(name=None))
    change(source.instances, lambda c: c["annotations"][0].update(values))
    with pytest.raises(UserError, match=rf"instances\.json: 1 of 3 .* more than 1%: .*{words}"):
        read(source)


@pytest.mark.parametrize("name", ["a\0b", "", " ", 5, None, ["kite"]])
def test_category_names_that_cannot_be_written(tmp_path: Path, name: Any) -> None:
    source = make(tmp_path)
    change(source.instances, lambda c: c["categories"][0].update(name=name))
    with pytest.raises(UserError, match=r"instances\.json: 3 of 3 annotations .* category's name"):
        read(source)


def test_boxes_are_cut_at_the_border_of_their_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path)
    boxes = [[-2, 2, 10, 8], [20, 10, 10.01, 10.01], [5, 5, 9, 9]]
    change(
        source.instances, lambda c: [a.update(bbox=b) for a, b in zip(c["annotations"], boxes, strict=True)]
    )
    found = [row["objects"][0]["bbox"] for row in read(source)]
    assert found == [[0, 2, 8, 10], [20, 10, 30, 20], [5, 5, 14, 14]]
    assert "coco: left out 1 parts of boxes beyond the border" in capsys.readouterr().err


@pytest.mark.parametrize("digits", [5_000, 500_000])
@pytest.mark.parametrize("file", ["captions", "instances"])
def test_numbers_of_thousands_of_digits(tmp_path: Path, digits: int, file: str) -> None:
    source = make(tmp_path)
    path = tmp_path / f"{file}.json"
    path.write_text(path.read_text().replace('"image_id": 1,', f'"image_id": {"1" * digits},', 1))
    with pytest.raises(UserError, match=rf"{file}\.json: not valid JSON .*digits"):
        read(source)


def test_brackets_without_end(tmp_path: Path) -> None:
    source = make(tmp_path)
    source.captions.write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"captions\.json: not such JSON: brackets"):
        read(source)


@pytest.mark.parametrize("size", [(0, 20), (-30, 20), (30.5, 20), (None, 20), (1e60, 20), ("wide", 20)])
def test_sizes_that_no_picture_has(tmp_path: Path, size: Any) -> None:
    source = make(tmp_path)
    change(source.instances, lambda c: c["images"][0].update(width=size[0], height=size[1]))
    with pytest.raises(UserError, match=r"instances\.json: 1 of 3 images .* no whole numbers of pixels"):
        read(source)


def test_a_few_captions_that_are_no_text_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path, 101)
    change(source.captions, lambda c: c["annotations"][4].update(caption=None))
    change(source.captions, lambda c: c["annotations"][5].update(caption=7))  # both of image 3
    rows = read(source)
    assert len(rows) == 100 and "000000000003" not in {row["image_id"] for row in rows}
    said = capsys.readouterr().err
    assert "1 images without a caption that can be used" in said
    assert "left out 2 of 202 annotations: 2 whose caption is not text (id 30, 31; the first is None)" in said


@pytest.mark.parametrize("value", ["x\0y.jpg", "\ud83d.jpg", "", None, 5, []])
def test_file_names_that_no_file_has(tmp_path: Path, value: Any) -> None:
    source = make(tmp_path)
    change(source.captions, lambda c: c["images"][0].update(file_name=value))
    with pytest.raises(UserError, match=r"captions\.json: 1 of 3 images .* file_name .*id 1;"):
        read(source)


def test_manifests_hold_no_object_that_a_network_cannot_take(tmp_path: Path) -> None:
    row = read(make(tmp_path))[0]
    for odd in (
        {"bbox": [0, 0, 1], "label": "kite"},
        {"bbox": [0, 0, 1e60, 1], "label": "kite"},
        {"bbox": [0, 0, None, 1], "label": "kite"},
        {"bbox": None, "label": "kite"},
        {"bbox": [0, 0, 1, 1], "label": None},
    ):
        with pytest.raises(UserError, match=r"m\.parquet: .*object"):
            write_manifest([row | {"objects": [odd | {"attributes": []}]}], tmp_path / "m.parquet")
    write_manifest([row], tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet")["objects"].to_pylist() == [row["objects"]]


# --- text


def test_halves_of_characters_are_replaced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path)
    change(source.captions, lambda c: c["annotations"][0].update(caption="a kite \ud83d flies"))
    change(source.captions, lambda c: c["annotations"][1].update(caption="a kite \ud83d\ude00 flies"))
    change(source.instances, lambda c: c["categories"][0].update(name="ki\udc80te"))
    rows = read(source)
    write_manifest(rows, tmp_path / "m.parquet")
    assert rows[0]["captions"] == ["a kite \ufffd flies .", "a kite \U0001f600 flies ."]
    assert rows[0]["objects"][0]["label"] == "ki\ufffdte"
    assert "1 halves of characters (replaced, in that many captions)" in capsys.readouterr().err


# --- files that are nearly right


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_and_gzip_are_read(tmp_path: Path, encoding: str, packed: bool) -> None:
    source = make(tmp_path)
    change(source.captions, lambda c: c["annotations"][0].update(caption="ein Käfer"))
    plain = read(source)
    for path in (source.captions, source.instances):
        assert path is not None
        content = json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding)
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    assert read(source) == plain and plain[0]["captions"][0] == "ein Käfer ."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-lfs"),
        (b"PK\x03\x04rest", "a ZIP archive; unpack it"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x1f\x8b\x08broken", "packed by gzip, and damaged"),
        (gzip.compress(b"{}" * 1000, mtime=0)[:-9], "packed by gzip, and damaged"),
        (b'{"images": [', "cut short"),
        (b'{"images": ["a', "cut short"),
        (b'{"image_id": 1}\n{"image_id": 2}\n', "one JSON value a line"),
        ('{"a": "Käfer"}'.encode("latin-1"), "no UTF-8 .byte 0xe4 at place 8.; save it as UTF-8"),
        (b'[{"image": "a.jpg", "caption": "x"}]', "not COCO captions but a flat list .*BLIP"),
        (b'{"images": [{"sentences": []}]}', "no 'annotations'. but Karpathy's form .*dataset.coco.karpathy"),
        (b'{"images": [], "annotations": [{"bbox": []}]}', "not COCO captions but COCO's instances"),
    ],
)
def test_what_a_file_is_instead(tmp_path: Path, content: bytes, words: str) -> None:
    source = make(tmp_path)
    source.captions.write_bytes(content)
    with pytest.raises(UserError, match=rf"captions\.json: .*{words}"):
        read(source)


def test_blips_list_and_cocos_files_in_the_place_of_karpathys(tmp_path: Path) -> None:
    source = make(tmp_path)
    karpathy = {"karpathy": tmp_path / "k.json", "images": source.images}
    flat = [{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["a dog", "a kite"]}]
    for content, words in (
        (flat, r"not Karpathy's dataset_coco\.json but a flat list of images and captions, as BLIP's"),
        (json.loads(source.captions.read_text()), r"COCO's captions; .*dataset\.coco\.sources\[\]\.captions"),
        (json.loads((tmp_path / "instances.json").read_text()), "COCO's instances; .*`instances`"),
        ({"images": 3}, "'images' is no list"),
        (3, "but no object"),
    ):
        write(tmp_path / "k.json", content)
        with pytest.raises(UserError, match=rf"k\.json: .*{words}"):
            read(**karpathy)
    write(tmp_path / "instances.json", json.loads(source.captions.read_text()) | {"categories": []})
    with pytest.raises(UserError, match=r"instances\.json: not COCO instances but COCO's captions"):
        read(source)


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        ("train2014\\1.jpg", "train2014/1.jpg"),
        ("C:\\Users\\me\\images\\train2014\\1.jpg", "train2014/1.jpg"),
        ("/home/me/images/train2014/1.jpg", "train2014/1.jpg"),
        ("a%20kite.jpg", "a kite.jpg"),
        ("a kite.jpg", "a%20kite.jpg"),
        ("KITE.JPG", "kite.jpg"),
        ("Train2014/Kite.JPG", "train2014/kite.jpg"),
        ("ka\u0308fer.jpg", "k\u00e4fer.jpg"),
        ("k\u00e4fer.jpg", "ka\u0308fer.jpg"),
    ],
)
def test_names_that_are_spelled_otherwise_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str, stored: str
) -> None:
    source = make(tmp_path)
    path = source.images / stored
    path.parent.mkdir(exist_ok=True)
    (source.images / "1.jpg").rename(path)
    change(source.captions, lambda c: c["images"][0].update(file_name=listed))
    assert Path(read(source)[0]["path"]) == path
    assert "coco: 1 file names are spelled otherwise on disk" in capsys.readouterr().err


def test_spellings_that_two_files_or_two_names_fit(tmp_path: Path) -> None:
    source = make(tmp_path)
    (source.images / "1.jpg").rename(source.images / "Kite.jpg")
    (source.images / "2.jpg").rename(source.images / "kitE.jpg")
    change(source.captions, lambda c: [i.update(file_name="kite.jpg") for i in c["images"][:1]])
    change(source.captions, lambda c: [i.update(file_name="kitE.jpg") for i in c["images"][1:2]])
    with pytest.raises(
        UserError, match=r"image 000000000001 is called 'kite\.jpg', and 2 files .*Kite\.jpg and kitE\.jpg"
    ):
        read(source)
    (source.images / "Kite.jpg").unlink()
    with pytest.raises(
        UserError, match=r"images 000000000001 .* and 000000000002 .* would both be .*kitE\.jpg"
    ):
        read(source)


def test_a_name_that_is_not_there_is_said(tmp_path: Path) -> None:
    source = make(tmp_path)
    change(source.captions, lambda c: c["images"][0].update(file_name="sub\\none.jpg"))
    with pytest.raises(
        UserError, match=r"1 of 3 images are missing .*'sub\\\\none\.jpg' was looked for below .*images"
    ):
        read(source)
    change(source.captions, lambda c: c["images"][0].update(file_name="x" * 300))
    with pytest.raises(UserError, match="1 of 3 images are missing"):
        read(source)


def test_folders_decide_between_pictures_of_one_name(tmp_path: Path) -> None:
    source = make(tmp_path, 2)
    for number, folder in ((1, "a"), (2, "b")):
        (source.images / folder).mkdir()
        (source.images / f"{number}.jpg").rename(source.images / folder / "0001.jpg")
    change(
        source.captions,
        lambda c: [i.update(file_name=f"{f}/0001.jpg") for i, f in zip(c["images"], "ab", strict=True)],
    )
    rows = read(source)
    assert [(Path(r["path"]).parent.name, r["captions"][0]) for r in rows] == [
        ("a", "picture 1 ."),
        ("b", "picture 2 ."),
    ]


# --- EXIF


def turned(path: Path, size: tuple[int, int], orientation: int, corners: tuple[int, int, int, int]) -> None:
    """A picture whose stored pixels have a white box in black."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), corners)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)


def rotated(
    tmp_path: Path, orientation: int, size: tuple[int, int], stated: tuple[int, int] | None
) -> CocoSource:
    """One picture of an orientation, stored in `size`, with a box of the stored picture."""
    source = make(tmp_path, 1)
    corners = (2, 3, 12, 9)
    turned(source.images / "1.png", size, orientation, corners)

    def edit(content: Any) -> None:
        content["images"][0].update(file_name="1.png")
        for key, side in zip(("width", "height"), stated or (None, None), strict=True):
            content["images"][0][key] = side
        for row in content["annotations"]:
            row["bbox"] = [2, 3, 10, 6]

    change(source.captions, edit)
    change(source.instances, edit)
    return source


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_stored_picture_turn_with_its_pixels(tmp_path: Path, orientation: int) -> None:
    rows = read(rotated(tmp_path, orientation, (40, 30), (40, 30)))
    assert (rows[0]["width"], rows[0]["height"]) == (30, 40)
    x0, y0, x1, y1 = (int(edge) for edge in rows[0]["objects"][0]["bbox"])
    pixels = np.asarray(read_image(Path(rows[0]["path"])))[..., 0]
    assert (x1 - x0, y1 - y0) == (6, 10) and pixels[y0:y1, x0:x1].min() == 255 and pixels.sum() == 60 * 255


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_upright_picture_stay(tmp_path: Path, orientation: int) -> None:
    rows = read(rotated(tmp_path, orientation, (40, 30), (30, 40)))
    assert rows[0]["objects"][0]["bbox"] == [2, 3, 12, 9]


@pytest.mark.parametrize(
    ("orientation", "size", "stated"),
    [(2, (40, 30), (40, 30)), (3, (40, 30), (40, 30)), (4, (40, 30), (40, 30)), (6, (30, 30), (30, 30)),
     (6, (40, 30), None), (3, (40, 30), None)],
)  # fmt: skip
def test_orientations_that_no_size_explains_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int, size: Any, stated: Any
) -> None:
    source = rotated(tmp_path, orientation, size, stated)
    with pytest.raises(
        UserError, match=r"instances\.json: 1 of 1 boxes cannot be used.* EXIF orientation.*id 1000"
    ):
        read(source)
    # one among many: its boxes are unknown, not none
    other = make(tmp_path / "more", 2, boxes=100)
    change(source.captions, lambda c: [r.update(id=9) for r in c["images"]])
    change(source.captions, lambda c: [r.update(image_id=9) for r in c["annotations"]])
    change(source.instances, lambda c: [r.update(id=9) for r in c["images"]])
    change(source.instances, lambda c: [r.update(image_id=9) for r in c["annotations"]])
    for path in (source.captions, source.instances):
        assert path is not None
        content, more = json.loads(path.read_text()), json.loads((tmp_path / "more" / path.name).read_text())
        write(path, more | {key: [*more[key], *content[key]] for key in ("images", "annotations")})
    (source.images / "1.png").rename(other.images / "1.png")
    rows = read(CocoSource("train", other.images, source.captions, source.instances))
    assert [row["objects"] if row["objects"] is None else len(row["objects"]) for row in rows] == [
        100,
        100,
        None,
    ]
    assert "left out 1 of 201 boxes: 1 whose picture has an EXIF orientation" in capsys.readouterr().err


def test_exchanged_sides_without_exif_say_what_may_have_happened(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"1 of 1 images are not of the size .*40 x 30 instead of 30 x 40; an EXIF orientation",
    ):
        read(rotated(tmp_path, 1, (40, 30), (30, 40)))


def test_orientations_are_looked_up_for_what_an_older_run_kept(tmp_path: Path) -> None:
    source, facts = rotated(tmp_path, 6, (40, 30), (40, 30)), tmp_path / "files.jsonl"
    config = CocoConfig([source], None, None, [], False, None)
    first = list(read_coco(config, 0, facts))
    kept = [json.loads(line) for line in facts.read_text().splitlines() if line]
    for record in kept:
        del record[4]["orientation"]
    facts.write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert list(read_coco(config, 0, facts)) == first and first[0]["objects"][0]["bbox"] == [21, 2, 27, 12]
