"""Pictures as people have them: metadata that trip decoders up, decoders that raise what they like, folders."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from extraction import extract, manifest_row
from PIL import Image, PngImagePlugin

from diptych.features.datasets.coco import CocoConfig, CocoSource, read_coco
from diptych.features.detector.network import Detector, DetectorConfig, save_detector
from diptych.features.images import ImageError, image_size, is_upright_jpeg, read_image, upright_rgb
from diptych.features.manifest import write_manifest
from diptych.features.picture_folders import find_pictures

WIDTH, HEIGHT = 48, 40
TURNED = (HEIGHT, WIDTH)


def picture() -> Image.Image:
    """Smooth, with four different corners."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([rows * 6, columns * 5, (rows + columns) * 2], 2).astype(np.uint8)
    return Image.fromarray(pixels)


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_block(*entries: bytes, orientation: int = 6) -> bytes:
    """A big-endian EXIF block: the orientation, then other entries of twelve bytes."""
    first = struct.pack(">HHLHH", 0x0112, 3, 1, orientation, 0)
    count = struct.pack(">H", 1 + len(entries))
    return b"MM\x00\x2a\x00\x00\x00\x08" + count + first + b"".join(entries) + bytes(4)


def impossible_tag() -> bytes:
    """Orientation 6 beside an exposure bias, a signed rational, of -1/0."""
    block = exif_block(struct.pack(">HHLL", 0x9204, 10, 1, 8 + 2 + 24 + 4))
    return block + struct.pack(">ll", -1, 0)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    whole = encoded("JPEG", quality=95)
    added = b"".join(bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data for kind, data in segments)
    return whole[:2] + added + whole[2:]


def png_with(*chunks: tuple[bytes, bytes], before: bytes = b"IDAT") -> bytes:
    whole = encoded("PNG")
    place = whole.index(before) - 4
    added = b"".join(
        struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return whole[:place] + added + whole[place:]


LONG_TEXT = b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)
NO_TIFF = b"no TIFF at all"


# Metadata

SOUND = {
    "an impossible tag": (jpeg_with((0xE1, b"Exif\0\0" + impossible_tag())), 6),
    "an impossible tag in a PNG": (png_with((b"eXIf", impossible_tag())), 6),
    "EXIF that is no TIFF": (jpeg_with((0xE1, b"Exif\0\0" + NO_TIFF)), 1),
    "EXIF that ends early": (jpeg_with((0xE1, b"Exif\0\0" + exif_block(bytes(12))[:26])), 6),
    "an index of pictures of nonsense": (
        jpeg_with((0xE1, b"Exif\0\0" + exif_block()), (0xE2, b"MPF\0" + bytes(range(40)))),
        6,
    ),
    "a text that inflates to 2 MB": (png_with((b"zTXt", LONG_TEXT)), 1),
    "the same behind the pixels": (png_with((b"zTXt", LONG_TEXT), before=b"IEND"), 1),
    "the same, turned": (png_with((b"zTXt", LONG_TEXT), (b"eXIf", exif_block())), 6),
    "a profile that inflates to 2 MB": (png_with((b"iCCP", LONG_TEXT), (b"eXIf", impossible_tag())), 6),
    "an eXIf that is no TIFF": (png_with((b"eXIf", NO_TIFF)), 1),
    "chunks that are too short": (png_with((b"gAMA", b""), (b"pHYs", b"1"), (b"eXIf", exif_block())), 6),
    "a raw profile of no hexadecimals": (
        png_with((b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz!\n")),
        1,
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_pixels_are_read_whatever_the_metadata_say(name: str) -> None:
    content, orientation = SOUND[name]
    expected = np.asarray(
        Image.open(io.BytesIO(encoded("JPEG" if content[0] == 0xFF else "PNG", quality=95)))
    )
    if orientation == 6:
        expected = np.rot90(expected, -1)
    image = read_image(content)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert image_size(content) == image.size
    assert is_upright_jpeg(content) == (orientation == 1 and content[0] == 0xFF)
    np.testing.assert_array_equal(np.asarray(upright_rgb(image)), expected)  # it is not turned again


def test_an_avif_with_impossible_exif_is_read() -> None:
    """Of AVIF, the orientation is the container's."""
    content = encoded(
        "AVIF", exif=b"Exif\0\0" + exif_block(struct.pack(">HHLL", 0x9204, 10, 1, 38)) + bytes(8)
    )
    expected = np.asarray(read_image(content))
    place = content.index(b"MM\x00\x2a")
    broken = content[:place] + b"XX" + content[place + 2 :]
    np.testing.assert_array_equal(np.asarray(read_image(broken)), expected)
    assert expected.shape == (WIDTH, HEIGHT, 3) and image_size(broken) == TURNED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_and_its_size_known(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(content := encoded(kind, exif=exif))
    pixels = np.asarray(picture())
    turns = {
        1: pixels, 2: pixels[:, ::-1], 3: np.rot90(pixels, 2), 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).transpose(1, 0, 2), 8: np.rot90(pixels),
    }  # fmt: skip
    assert image.size == image_size(content) == turns[orientation].shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - turns[orientation]).mean() < 8


@pytest.mark.parametrize("cut", [60, 0.5, 0.7])
def test_damage_is_not_mended(cut: float) -> None:
    """What lacks pixels, or its end, is damaged also where its metadata could be left out."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "b" * 200)
    whole = encoded("PNG", pnginfo=notes)
    torn = whole[: int(cut * len(whole)) if cut < 1 else int(cut)]
    with pytest.raises(ImageError, match=r"x\.png: the image is damaged") as caught:
        read_image(torn, "x.png")
    assert caught.value.kind == "truncated"


# Decoders


def damaged_avif() -> bytes:
    content = bytearray(encoded("AVIF"))
    place = content.index(b"mdat") + 4
    content[place : place + 60] = bytes(60)
    return bytes(content)


def test_a_damaged_avif_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(damaged_avif())
    with pytest.raises(ImageError, match=r"a\.avif: not an image that can be read") as caught:
        read_image(tmp_path / "a.avif")
    assert caught.value.kind == "not_an_image"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("x"), "not_an_image"), (struct.error("x"), "not_an_image"), (zlib.error("x"), "not_an_image"),
        (OverflowError("x"), "not_an_image"), (KeyError("x"), "not_an_image"), (AssertionError(), "not_an_image"),
        (SyntaxError("x"), "truncated"), (ValueError("x"), "truncated"), (EOFError("x"), "truncated"),
        (OSError("x"), "truncated"), (Image.DecompressionBombError("x"), "too_large"),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_a_decoder_raises_is_an_error_of_one_picture(
    error: Exception, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"x\.png") as caught:
        read_image(encoded("PNG"), "x.png")
    assert caught.value.kind == kind


def test_what_a_machine_lacks_is_no_fault_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(MemoryError):  # extraction tries it again elsewhere
        read_image(encoded("PNG"))


def test_heic_is_named() -> None:
    content = b"\0\0\0\x18ftypheic" + bytes(100)
    with pytest.raises(ImageError, match=r"a\.heic: .*HEIC: convert it to JPEG or PNG"):
        read_image(content, "a.heic")


def test_floats_that_are_no_numbers_are_black(recwarn: pytest.WarningsRecorder) -> None:
    values = np.full((4, 4), 100, np.float32)
    values[0, 0] = np.nan
    pixels = np.asarray(read_image(encoded("TIFF", Image.fromarray(values))))
    assert (
        pixels[0, 0].tolist() == [0, 0, 0] and pixels[1, 1].tolist() == [100, 100, 100] and not recwarn.list
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_extraction_leaves_out_the_one_picture(workers: int, tmp_path: Path) -> None:
    """Without Ray and with it: the pictures beside it, and those whose metadata alone are odd, are extracted."""
    torch.manual_seed(0)
    save_detector(
        Detector(DetectorConfig(64, (8, 16, 16, 16), 16, 32), ["kite"], ["red"]), tmp_path / "detector"
    )
    contents = {
        "sound.png": encoded("PNG"), "damaged.avif": damaged_avif(), "text.png": SOUND["a text that inflates to 2 MB"][0],
        "tag.jpg": SOUND["an impossible tag"][0], "torn.png": encoded("PNG")[:60],
    }  # fmt: skip
    rows = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        rows.append(manifest_row(tmp_path / name, name.replace(".", "-"), 0, 0))
    write_manifest(rows, tmp_path / "manifest.parquet")
    counts = extract(
        tmp_path / "manifest.parquet", tmp_path / "detector", tmp_path / "store", tmp_path / "out", workers,
        max_failed_share=0.5,
    )  # fmt: skip
    assert counts == {
        "images": 5, "extracted": 3, "reused": 0, "failed": 2, "failed.not_an_image": 1, "failed.truncated": 1
    }  # fmt: skip
    failures = {
        row["image_id"]: row["kind"] for row in pq.read_table(tmp_path / "out/failures.parquet").to_pylist()
    }
    assert failures == {"damaged-avif": "not_an_image", "torn-png": "truncated"}


def test_the_dataset_takes_what_extraction_will_report(tmp_path: Path) -> None:
    for name, content in {"a.avif": damaged_avif(), "b.jpg": SOUND["an impossible tag"][0]}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "captions.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.avif"}, {"id": 2, "file_name": "b.jpg"}], "annotations": '
        '[{"image_id": 1, "caption": "a kite"}, {"image_id": 2, "caption": "a boat"}]}'
    )
    source = CocoSource("train", tmp_path, tmp_path / "captions.json", None)
    rows = list(read_coco(CocoConfig([source], None, None, [], False, None), 0))
    # the header of the damaged one may be sound
    assert (rows[0]["width"], rows[0]["height"]) in {(0, 0), (WIDTH, HEIGHT)}
    assert (rows[1]["width"], rows[1]["height"]) == TURNED


# Folders


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_what_a_folder_leaves_out_is_counted(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.jpg", "b.JFIF", "c.avif", "d.heic", "e.HEIC", "notes.txt", "README", ".DS_Store", ".thumb.png",
        "._a.jpg", "__MACOSX/a.jpg", "below/f.tiff", "below/._f.tiff", "below/__MACOSX/._f.tiff", "folder.jpg/g.png",
    )  # fmt: skip
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_pictures(tmp_path)
    assert [path.as_posix() for path in found.files] == [
        "a.jpg", "b.JFIF", "below/f.tiff", "c.avif", "folder.jpg/g.png", "gone.png"
    ]  # fmt: skip
    assert dict(found.left_out) == {".heic": 2, ".txt": 1, "without ending": 1, "hidden": 1, "no files": 1}
    assert found.remark.startswith(
        "left out 2 .heic, 1 .txt, 1 hidden, 1 no files, 1 without ending (HEIC cannot"
    )
    flat = find_pictures(tmp_path, below=False)
    assert [path.name for path in flat.files] == ["a.jpg", "b.JFIF", "c.avif", "gone.png"]
    assert flat.left_out["folders"] == 2
    touch(tmp_path / "many", *(f"x.{number:02}" for number in range(20)))
    assert find_pictures(tmp_path / "many").remark.endswith("1 .07, 12 others")
    assert find_pictures(tmp_path / "below").remark == ""


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "z/1.png")
    touch(outside, "2.png", "deep/3.png", "deep/er/4.png")
    (root / "a").symlink_to("z")  # an inner folder keeps its own name
    (root / "z" / "up").symlink_to("..")  # a loop
    (root / "above").symlink_to("../..")  # holds the folder itself
    (root / "itself").symlink_to("itself")
    (root / "b").symlink_to(outside / "deep")
    (root / "c").symlink_to(outside)
    (root / "d").symlink_to(outside)
    (outside / "back").symlink_to(root)
    found = find_pictures(root)
    assert [path.as_posix() for path in found.files] == ["b/3.png", "b/er/4.png", "c/2.png", "z/1.png"]
    assert dict(found.left_out) == {"without ending": 1}  # the link that leads to itself


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert find_pictures(tmp_path).remark == "left out 1 unreadable folders"
    finally:
        (tmp_path / "closed").chmod(0o700)
