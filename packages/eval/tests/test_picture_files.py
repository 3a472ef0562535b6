"""One reader for metrics and the study: upright, transparency on black, 16 bits scaled; one list of endings."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from diptych.eval.errors import UserError
from diptych.eval.images.embeddings import EmbedSettings, Encoder, FolderPictures, embed
from diptych.eval.images.embeddings import read_picture as read_measured
from diptych.eval.study.command import read_captions
from diptych.eval.study.pictures import find_pictures, read_picture

SETTINGS = EmbedSettings(image_size=8, batch_size=4, threads=1, max_damaged=0.5)
ENCODER = Encoder("mean", "mean", "mean", 3, lambda images: images.float().mean((2, 3)))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))


def damaged_avif() -> bytes:
    content = bytearray(encoded(noise(), "AVIF"))
    place = content.index(b"mdat") + 4
    content[place : place + 60] = bytes(60)
    return bytes(content)


def kinds() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files, and the pixels that everybody has to see."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.asarray(noise())
    alpha = np.full((20, 30, 1), 102, np.uint8)
    deep = np.random.default_rng(1).integers(0, 65536, (20, 30), dtype=np.uint16)
    text = b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)
    chunk = struct.pack(">L", len(text)) + b"zTXt" + text + struct.pack(">L", zlib.crc32(b"zTXt" + text))
    plain = encoded(noise())
    on_black = (pixels * 0.4 + 0.5).astype(np.uint8)
    return {
        "turned": (encoded(noise(), exif=exif), np.rot90(pixels, -1)),
        "clear": (encoded(Image.fromarray(np.concatenate([pixels, alpha], 2))), on_black),
        "deep": (
            encoded(Image.fromarray(deep)),
            np.repeat((deep.astype(int) * 255 // 65535)[..., None], 3, 2).astype(np.uint8),
        ),
        "text": (plain[:33] + chunk + plain[33:], pixels),
    }


@pytest.mark.parametrize("name", ["turned", "clear", "deep", "text"])
def test_the_study_shows_what_is_measured(name: str, tmp_path: Path) -> None:
    content, expected = kinds()[name]
    (tmp_path / "a.png").write_bytes(content)
    measured = np.asarray(read_measured(content))
    shown = np.asarray(Image.open(io.BytesIO(read_picture(tmp_path / "a.png"))))
    np.testing.assert_array_equal(shown, measured)
    if name == "clear":  # Pillow rounds in its own way
        assert np.abs(measured.astype(int) - expected).max() <= 1
    else:
        np.testing.assert_array_equal(measured, expected)


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), struct.error("x"), KeyError("x"), MemoryError()], ids=repr
)
def test_whatever_a_decoder_raises_concerns_one_picture(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(image: Image.Image) -> None:
        raise error

    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "b.bmp")
    monkeypatch.setattr(PngImageFile, "load", fail)
    embedded = embed(FolderPictures(tmp_path), [ENCODER], SETTINGS, tmp_path / "store")
    assert list(embedded.damaged) == ["a.png"] and embedded.readable.tolist() == [False, True]
    with pytest.raises(UserError, match=r"a\.png: no readable picture"):
        read_picture(tmp_path / "a.png")


def test_a_damaged_avif_is_left_out(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.jpg")
    (tmp_path / "b.avif").write_bytes(damaged_avif())
    embedded = embed(FolderPictures(tmp_path), [ENCODER], SETTINGS, tmp_path / "store")
    assert list(embedded.damaged) == ["b.avif"] and torch.tensor(embedded.rows("mean")[0]).isfinite().all()
    with pytest.raises(
        UserError, match=r"b\.avif: no readable picture .*; replace it or leave its caption out"
    ):
        read_picture(tmp_path / "b.avif")


def test_all_commands_see_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jfif", "b.avif", "c.bmp", "d.heic", "._a.jfif", "captions.csv", "below/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pictures = FolderPictures(tmp_path)
    assert pictures.names == ["a.jfif", "b.avif", "below/e.png", "c.bmp"]
    assert pictures.remark.startswith("left out 1 .csv, 1 .heic (HEIC cannot be read")
    assert {name: path.name for name, path in find_pictures(tmp_path).items()} == {
        "a": "a.jfif", "b": "b.avif", "c": "c.bmp"
    }  # fmt: skip
    assert capsys.readouterr().err.startswith(f"{tmp_path}: left out 1 .csv, 1 .heic, 1 folders (HEIC")
    (tmp_path / "captions.csv").write_text("image,caption\na.jfif,a cat\nb.v2,a dog\n")
    assert read_captions(tmp_path / "captions.csv") == {"a": "a cat", "b.v2": "a dog"}
    for name in ("a.jfif", "b.avif", "c.bmp"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"holds no pictures .*; left out 1 \.csv, 1 \.heic, 1 folders"):
        find_pictures(tmp_path)


def test_a_name_that_is_not_utf8_is_measured(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(noise()))
    embedded = embed(FolderPictures(tmp_path), [ENCODER], SETTINGS, tmp_path / "store")
    assert embedded.readable.all() and list(map(os.fsencode, embedded.names)) == [b"caf\xe9.png"]
