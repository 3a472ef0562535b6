"""Streaming embeddings: the same as one picture at a time, in bounded memory, resumable, damaged pictures named."""

from __future__ import annotations

import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from waiting import HOLD, held, kill

from diptych.eval.errors import UserError
from diptych.eval.images import embeddings
from diptych.eval.images.embeddings import (
    CHUNK,
    EmbedSettings,
    Encoder,
    FolderPictures,
    embed,
    read_picture,
    resized,
    weights_sha256,
)

SETTINGS = EmbedSettings(image_size=16, batch_size=8, threads=2)


def mean_colour(name: str = "mean", blur: float = 0.0, calls: list[int] | None = None) -> Encoder:
    """An encoder whose embedding can be told without a network."""

    def encode(images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        if calls is not None:
            calls.append(len(images))
        return torch.cat([images.float().mean((2, 3)), images.float().std((2, 3))], 1)

    return Encoder(name, "mean colour", "mean colour 1", 6, encode, blur)


def make_folder(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 255, (20 + number % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
    return folder


def test_embeddings_are_those_of_one_picture_at_a_time(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 21)
    (folder / "deeper").mkdir()
    (folder / "00003.png").rename(folder / "deeper" / "a.png")
    (folder / "notes.txt").write_text("no picture")
    pictures = FolderPictures(folder)
    assert len(pictures.names) == 21 and pictures.names[-1] == "deeper/a.png"
    encoders = [mean_colour(), mean_colour("mean_blur_2", 2.0)]
    embedded = embed(pictures, encoders, SETTINGS, tmp_path / "store")
    assert embedded.readable.all() and not embedded.damaged
    for encoder in encoders:
        rows = embedded.rows(encoder.name)
        assert rows.dtype == np.float32 and rows.shape == (21, 6)
        for number, name in enumerate(pictures.names):
            image = Image.open(folder / name).resize((16, 16), Image.Resampling.BICUBIC)
            if encoder.blur:
                image = image.filter(ImageFilter.GaussianBlur(2))
            expected = encoder.encode(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
            np.testing.assert_allclose(rows[number], expected[0], rtol=1e-5)


def test_crop_takes_the_middle_and_stretch_everything() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    image = Image.fromarray(pixels)
    crop = resized(image, EmbedSettings(image_size=10, resize="crop"))
    assert np.asarray(crop).min() == 255
    stretched = np.asarray(resized(image, EmbedSettings(image_size=30)))
    assert stretched[:, :8].max() == 0 and stretched[:, 12:18].min() == 255


def test_what_is_stored_is_not_computed_again(tmp_path: Path) -> None:
    folder, calls = make_folder(tmp_path / "pictures", 20), []
    store, encoder = tmp_path / "store", mean_colour(calls=calls)
    first = embed(FolderPictures(folder), [encoder], SETTINGS, store)
    assert sum(calls) == 20
    again = embed(FolderPictures(folder), [encoder], SETTINGS, store)
    assert sum(calls) == 20 and again.sha256 == first.sha256
    np.testing.assert_array_equal(again.rows("mean"), first.rows("mean"))
    # other settings, another encoder and other contents are not what is stored
    embed(FolderPictures(folder), [encoder], EmbedSettings(image_size=12, batch_size=8), store)
    assert sum(calls) == 40
    other = Encoder("mean", "mean colour", "mean colour 2", 6, encoder.encode)
    embed(FolderPictures(folder), [other], SETTINGS, store)
    assert sum(calls) == 60
    Image.new("RGB", (20, 20)).save(folder / "00004.png")
    changed = embed(FolderPictures(folder), [encoder], SETTINGS, store)
    assert sum(calls) == 80 and changed.sha256 != first.sha256


def test_pictures_that_could_not_be_read_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of the machine's is not kept as a picture's."""
    folder, calls = make_folder(tmp_path / "pictures", 20), []
    pictures, store = FolderPictures(folder), tmp_path / "store"
    bad = (folder / "00004.png").read_bytes()
    decode = embeddings.read_picture

    def failing(content: bytes) -> Image.Image:
        if content == bad:
            raise UserError("does not fit into memory")
        return decode(content)

    encoders = [mean_colour(calls=calls), mean_colour("blurred", 2.0)]
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "read_picture", failing)
        with pytest.raises(UserError, match=r"1 of 20 .*00004\.png: does not fit into memory"):
            embed(pictures, encoders, SETTINGS, store)
        some = embed(pictures, encoders, EmbedSettings(16, batch_size=8, threads=2, max_damaged=0.1), store)
        assert some.readable.sum() == 19 and some.damaged == {"00004.png": "does not fit into memory"}
        assert sum(calls) == 19, "what is stored is not computed again"
    whole = embed(pictures, encoders, SETTINGS, store)
    assert whole.readable.all() and not whole.damaged and sum(calls) == 20
    undisturbed = embed(pictures, encoders, SETTINGS, tmp_path / "other")
    for name in ("mean", "blurred"):
        np.testing.assert_array_equal(whole.rows(name), undisturbed.rows(name))


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    count = 2 * CHUNK + 40
    folder = make_folder(tmp_path / "pictures", count)
    store = tmp_path / "store"
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_pictures import *
        plain, store = mean_colour(), Path({str(store)!r})
        def encode(images):
            if list(store.glob("[0-9a-f]*.npy")):
                {HOLD}
            return plain.encode(images)
        embed(FolderPictures({str(folder)!r}), [Encoder("mean", "m", plain.key, 6, encode)], SETTINGS, store)
        """
    )
    kill(held(script))
    done = len(list(store.glob("[0-9a-f]*.npy")))
    assert 1 <= done < 3, "killed in its middle"
    calls: list[int] = []
    resumed = embed(FolderPictures(folder), [mean_colour(calls=calls)], SETTINGS, store)
    assert sum(calls) == count - done * CHUNK
    whole = embed(FolderPictures(folder), [mean_colour()], SETTINGS, tmp_path / "other")
    np.testing.assert_array_equal(resumed.rows("mean"), whole.rows("mean"))


def test_no_more_than_two_batches_are_decoded_ahead(tmp_path: Path) -> None:
    """Pictures that were read and are not embedded yet stay few, however slow the network is."""
    reading, lock = {"open": 0, "most": 0}, threading.Lock()

    class Counted:
        names = tuple(f"{number}.png" for number in range(200))

        def __init__(self) -> None:
            self.digested: set[int] = set()

        def content(self, index: int) -> bytes:
            if index in self.digested:
                with lock:
                    reading["open"] += 1
                    reading["most"] = max(reading["most"], reading["open"])
            self.digested.add(index)
            return picture

    plain = mean_colour()

    def encode(images: Tensor) -> Tensor:
        time.sleep(0.01)
        with lock:
            reading["open"] -= len(images)
        return plain.encode(images)

    Image.new("RGB", (16, 16), (200, 100, 0)).save(tmp_path / "one.png")
    picture = (tmp_path / "one.png").read_bytes()
    embed(Counted(), [Encoder("mean", "m", "k", 6, encode)], SETTINGS, tmp_path / "store")
    assert SETTINGS.batch_size <= reading["most"] <= 2 * SETTINGS.batch_size + 2 * SETTINGS.threads


def test_damaged_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 20)
    (folder / "00002.png").write_bytes((folder / "00002.png").read_bytes()[:60])
    (folder / "00007.png").write_text("not a picture")
    (folder / "00011.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"3 of 20 pictures are damaged \(00002.png: .*; 00007.png: not an image"
    ):
        embed(FolderPictures(folder), [mean_colour()], SETTINGS, tmp_path / "store")
    lenient = EmbedSettings(image_size=16, batch_size=8, threads=2, max_damaged=0.2)
    for _ in range(2):  # at first, and when it is stored
        embedded = embed(FolderPictures(folder), [mean_colour()], lenient, tmp_path / "store")
        assert sorted(embedded.damaged) == ["00002.png", "00007.png", "00011.png"]
        assert np.flatnonzero(~embedded.readable).tolist() == [2, 7, 11]
        assert np.isnan(embedded.rows("mean")[2]).all() and np.isfinite(embedded.rows("mean")[3]).all()
    assert [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".partial")] == []


def test_every_usual_kind_becomes_upright_rgb(tmp_path: Path) -> None:
    def content(image: Image.Image, name: str, **options) -> bytes:
        image.save(tmp_path / name, **options)
        return (tmp_path / name).read_bytes()

    rotated = Image.new("RGB", (8, 4))
    exif = rotated.getexif()
    exif[0x0112] = 6
    assert read_picture(content(rotated, "exif.jpg", exif=exif)).size == (4, 8)
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert np.asarray(read_picture(content(clear, "clear.png"))).max() == 0
    deep = Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16))
    assert np.asarray(read_picture(content(deep, "deep.png"))).tolist() == [[[127] * 3] * 4] * 4
    assert read_picture(content(Image.new("P", (3, 3)), "palette.png")).mode == "RGB"
    assert read_picture(content(Image.new("CMYK", (3, 3)), "cmyk.jpg")).mode == "RGB"


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        FolderPictures(tmp_path / "none")
    with pytest.raises(UserError, match="no pictures there"):
        FolderPictures(tmp_path)


def test_numbers_that_are_not_finite_are_not_taken_for_damage(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 3)
    broken = Encoder("x", "the broken one", "x", 2, lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(UserError, match="the broken one gives numbers that are not finite"):
        embed(FolderPictures(folder), [broken], SETTINGS, tmp_path / "store")


def test_weights_hash_tells_networks_apart() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert weights_sha256(first) != weights_sha256(second)
    second.load_state_dict(first.state_dict())
    assert weights_sha256(first) == weights_sha256(second)
