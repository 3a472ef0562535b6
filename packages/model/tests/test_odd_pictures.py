"""`diptych caption` and uploads with pictures as people have them: odd names, odd metadata, damage of every kind."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.model import Diptych
from diptych.model.command.pictures import found, readable_name
from diptych.model.errors import UserError
from diptych.model.packaged.pictures import read_picture
from diptych.model.serve.uploads import UploadError, read_upload


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged_avif(image: Image.Image) -> bytes:
    content = bytearray(encoded(image.resize((48, 40)), "AVIF"))
    place = content.index(b"mdat") + 4
    content[place : place + 60] = bytes(60)
    return bytes(content)


def with_impossible_tag(image: Image.Image) -> bytes:
    """A sound JPEG, to be turned by 90 degrees, with an exposure bias of -1/0."""
    entries = struct.pack(">HHLHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHLL", 0x9204, 10, 1, 38)
    block = b"MM\x00\x2a\x00\x00\x00\x08\x00\x02" + entries + bytes(4) + struct.pack(">ll", -1, 0)
    whole = encoded(image, "JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + whole[2:]


def with_long_text(image: Image.Image) -> bytes:
    """A sound PNG whose comment inflates to 2 MB."""
    whole, text = encoded(image, "PNG"), b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)
    chunk = struct.pack(">L", len(text)) + b"zTXt" + text + struct.pack(">L", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


@pytest.fixture
def run(package: Path, tmp_path: Path):
    """Run `diptych caption` in a process of its own: status, stdout and stderr in bytes."""

    def call(*arguments: str | bytes, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        command = [sys.executable, "-m", "diptych.model.command.app", "caption", *arguments]
        environment = os.environ | {"DIPTYCH_MODEL": str(package), "PYTHONUTF8": "1"}
        options = ["--precision", "float32"]
        ended = subprocess.run(
            [*command, *options], check=False, input=stdin, capture_output=True, cwd=tmp_path, env=environment
        )
        return ended.returncode, ended.stdout, ended.stderr

    return call


NAME = b"caf\xe9.png"  # Latin-1


@pytest.mark.parametrize("source", ["folder", "argument", "stdin"])
def test_a_name_that_is_not_utf8(run, source: str, tmp_path: Path, pictures, diptych: Diptych) -> None:
    folder = os.fsencode(tmp_path) + b"/photos"
    os.mkdir(folder)
    for name, image in zip((b"a.png", NAME, b"z.png"), pictures, strict=False):
        with open(folder + b"/" + name, "wb") as file:
            file.write(encoded(image, "PNG"))
    captions = [str(caption) for caption in diptych.caption(list(pictures[:3]))]
    paths = [b"photos/a.png", b"photos/" + NAME, b"photos/z.png"]
    arguments: list[str | bytes] = {"folder": ["photos"], "argument": paths, "stdin": ["-"]}[source]  # type: ignore[assignment]
    stdin = b"\n".join(paths) + b"\n" if source == "stdin" else b""
    if source != "stdin":
        status, out, err = run(*arguments, stdin=stdin)
        assert status == 0, err
        expected = [path + b"\t" + caption.encode() for path, caption in zip(paths, captions, strict=True)]
        assert out.splitlines() == expected  # the name's own bytes
        return
    status, out, err = run(*arguments, "--json", stdin=stdin)
    answers = [json.loads(line.decode()) for line in out.splitlines()]
    assert status == 0 and [answer["captions"][0]["text"] for answer in answers] == captions
    assert [answer["image"] for answer in answers] == ["photos/a.png", "photos/caf\ufffd.png", "photos/z.png"]
    assert [bytes.fromhex(answer.get("image_bytes", "")) for answer in answers] == [b"", paths[1], b""]


def test_a_damaged_picture_of_such_a_name_is_named(run, tmp_path: Path, pictures) -> None:
    folder = os.fsencode(tmp_path) + b"/photos"
    os.mkdir(folder)
    with open(folder + b"/" + NAME, "wb") as file:
        file.write(b"no picture")
    pictures[0].save(tmp_path / "photos" / "z.png")
    status, out, err = run("photos")
    assert status == 1 and out.startswith(b"photos/z.png\t") and b"caf\\udce9.png: not an image" in err
    status, out, err = run("photos", "--json")
    problem, caption = (json.loads(line.decode()) for line in out.splitlines())
    assert status == 1 and b"Traceback" not in err and "captions" in caption
    assert problem["error"].startswith("photos/caf\ufffd.png: not an image")
    assert bytes.fromhex(problem["image_bytes"]) == b"photos/" + NAME


def test_odd_pictures_are_captioned_and_damaged_ones_reported(run, tmp_path: Path, pictures, diptych) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.avif").write_bytes(damaged_avif(pictures[0]))
    (folder / "b.jfif").write_bytes(with_impossible_tag(pictures[1]))
    (folder / "c.png").write_bytes(with_long_text(pictures[2]))
    for name in ("d.heic", "e.heic", "._b.jfif", "notes.txt"):
        (folder / name).write_bytes(b"\0\5\26\7")
    upright = Image.open(folder / "b.jfif").convert("RGB").transpose(Image.Transpose.ROTATE_270)
    captions = [str(caption) for caption in diptych.caption([upright, pictures[2]])]
    status, out, err = run("photos")
    assert status == 1 and out.decode().splitlines() == [
        f"photos/b.jfif\t{captions[0]}", f"photos/c.png\t{captions[1]}"
    ]  # fmt: skip
    lines = [line for line in err.decode().splitlines() if line.startswith("diptych:")]
    assert lines[0].startswith("diptych: photos: left out 2 .heic, 1 .txt")
    assert lines[1].startswith("diptych: photos/a.avif: not an image that can be read") and len(lines) == 2


def test_a_folder_of_other_files_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(
        UserError, match=r"no picture below this folder .*; left out 1 \.heic \(HEIC cannot be read"
    ):
        list(found([str(tmp_path)]))


def test_names_are_readable() -> None:
    assert readable_name("café.png") == "café.png"
    assert readable_name(os.fsdecode(NAME)) == "caf\ufffd.png"


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), struct.error("x"), MemoryError(), KeyError("x")], ids=repr
)
def test_whatever_a_decoder_raises_concerns_one_picture(
    error: Exception, monkeypatch: pytest.MonkeyPatch, pictures, tmp_path: Path
) -> None:
    from PIL.PngImagePlugin import PngImageFile

    def fail(image: Image.Image) -> None:
        raise error

    pictures[0].save(tmp_path / "a.png")
    opened = Image.open(tmp_path / "a.png")
    monkeypatch.setattr(PngImageFile, "load", fail)
    for source, name in (
        (tmp_path / "a.png", "a.png"),
        (encoded(pictures[0], "PNG"), "picture 3"),
        (opened, "picture 3"),
    ):
        with pytest.raises(UserError, match=name):
            read_picture(source, 3)
    with pytest.raises(UploadError) as caught:
        read_upload(encoded(pictures[0], "PNG"), 10_000)
    assert caught.value.status in (415, 422)


def test_uploads(pictures) -> None:
    with pytest.raises(UploadError, match="not a picture that can be read") as caught:
        read_upload(damaged_avif(pictures[0]), 10_000)
    assert caught.value.status == 415
    turned = np.asarray(Image.open(io.BytesIO(with_impossible_tag(pictures[1]))).convert("RGB"))
    np.testing.assert_array_equal(
        np.asarray(read_upload(with_impossible_tag(pictures[1]), 10_000)), np.rot90(turned, -1)
    )
    image = read_upload(with_impossible_tag(pictures[1]), 10_000)
    np.testing.assert_array_equal(np.asarray(read_picture(image)), np.asarray(image))  # not turned again
    read = read_upload(with_long_text(pictures[2]), 10_000)
    np.testing.assert_array_equal(np.asarray(read), np.asarray(pictures[2].convert("RGB")))
