"""FID by its two protocols: pytorch-fid's resizing restated in numpy, on odd-sized JPEGs and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.eval.command import app
from diptych.eval.images.frechet import frechet_distance
from diptych.eval.images.inception import (
    FID_PROTOCOLS,
    INPUT_SIZE,
    Inception,
    pytorch_fid_input,
)
from diptych.eval.report.labels import label
from diptych.eval.report.tables import papers

SIZES = ((181, 97), (333, 240), (299, 299), (64, 411))


def photographs(folder: Path, count: int, seed: int) -> Path:
    """JPEGs of odd sizes with large shapes and fine grain."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        grain = generator.integers(-40, 41, (height, width, 3))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
    return folder


def bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] to [size, size, 3]: between the centres of pixels, edges held, no antialiasing."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        place = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return pixels


def restated_features(path: Path, inception: Inception, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """pytorch-fid's features of a file: its resizing by numpy, then torch-fidelity's own forward pass.

    That makes (x - 128) / 128 of pixels, pytorch-fid 2 y - 1 of pixels in 0..1: x is 256 y.
    """
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64) / 255
    seen = torch.from_numpy(bilinear(pixels, 299)).permute(2, 0, 1)[None].float() * 256
    with monkeypatch.context() as patch:
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.interpolate_bilinear_2d_like_tensorflow1x",
            lambda *_, **__: seen,
        )
        return inception(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[:, :2048]


def test_pictures_are_resized_as_by_pytorch_fid(tmp_path: Path) -> None:
    for path in sorted(photographs(tmp_path / "pictures", 4, seed=0).iterdir()):
        image = Image.open(path)
        expected = bilinear(np.asarray(image, np.float64) / 255, INPUT_SIZE).transpose(2, 0, 1)
        found = pytorch_fid_input(image)
        assert found.dtype == torch.float32
        # places are float32 there too
        np.testing.assert_allclose(found, expected, atol=1e-4)
        # an antialiased resize, or one by way of a square of 256, is another picture
        if image.size != (299, 299):
            square = image.resize((256, 256), Image.Resampling.BICUBIC)
            assert np.abs(pytorch_fid_input(square).numpy() - expected).mean() > 2e-3


def test_both_protocols_are_measured_and_told_apart(
    tmp_path: Path, inception_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    real, generated = (photographs(tmp_path / name, 3, seed) for name, seed in (("real", 1), ("made", 2)))
    arguments = [
        "images", str(generated), str(real), "--inception", str(inception_weights), "--fid-protocols", *FID_PROTOCOLS,
        "--blur-radii", "0", "4", "--frechet-resamples", "0", "--resamples", "10", "--image-size", "64",
        "--device", "cpu", "--store", str(tmp_path / "store"), "-o", str(tmp_path / "out.json"),
    ]  # fmt: skip
    assert app.main(arguments) == 0, capsys.readouterr().err
    records = {record["name"]: record for record in json.loads((tmp_path / "out.json").read_text())}
    inception = Inception(inception_weights)
    rows, others = (
        torch.cat([restated_features(path, inception, monkeypatch) for path in sorted(folder.glob("*.jpg"))])
        for folder in (generated, real)
    )
    fid, ours = records["generated.fid_pytorch"], records["generated.fid"]
    assert fid["value"] == pytest.approx(frechet_distance(rows, others), rel=1e-3)
    assert fid["value"] > 0.01
    assert abs(ours["value"] - fid["value"]) > 0.02 * fid["value"]
    assert fid["resize"] == "pytorch-fid's, 299 x 299, bilinear, not antialiased"
    assert fid["detail"] == "against 3 pictures, protocol pytorch-fid (the papers')"
    assert ours["resize"] == "stretch to 64 x 64, bicubic, antialiased (Pillow)"
    assert ours["detail"].startswith("against 3 pictures, protocol diptych")
    # a blur of so many pixels means the same in pictures of one size only
    assert records["generated.fid_pytorch_blur_4"]["resize"] == (
        "stretch to 64 x 64, bicubic, antialiased (Pillow), then blurred by a Gaussian of 4 pixels (Pillow), "
        "then pytorch-fid's, 299 x 299, bilinear, not antialiased"
    )
    assert records["generated.fid_pytorch_blur_4"]["value"] != records["generated.fid_blur_4"]["value"]
    assert "generated.fid_pytorch " in capsys.readouterr().out

    # by the papers' protocol alone: no figure that could be mistaken for it, and the Inception Score as before
    monkeypatch.setattr(Inception, "pytorch_fid_features", lambda *_: pytest.fail("was kept"))
    alone = [argument for argument in arguments if argument != "diptych"]
    assert app.main(alone) == 0, capsys.readouterr().err
    again = {record["name"]: record for record in json.loads((tmp_path / "out.json").read_text())}
    assert again == {
        name: record for name, record in records.items() if not name.startswith("generated.fid") or "pytorch" in name
    }  # fmt: skip


def test_protocols_have_names(capsys) -> None:
    assert app._FID_PROTOCOLS == FID_PROTOCOLS
    with pytest.raises(SystemExit, match="2"):
        app.main(["images", "a", "b", "--fid-protocols", "clean-fid"])
    assert "clean-fid" in capsys.readouterr().err


def test_only_pytorch_fid_s_figure_stands_beside_the_papers() -> None:
    def own(records: dict) -> tuple[str, str]:
        tables = {table["title"]: table for table in papers(records)}
        painted, blurred = tables["Painted pictures"], tables["FID of blurred pictures"]
        return painted["own"][0][1][painted["columns"].index("FID ↓")], blurred["own"][0][1][3]

    def records(**values: float) -> dict:
        return {f"painted.{name}": {"value": value, "scale": 1.0} for name, value in values.items()}

    both = records(fid=20.0, fid_pytorch=30.0, fid_blur_4=2.0, fid_pytorch_blur_4=3.0)
    assert own(both) == ("30.0", "3.0")
    assert own(records(fid=20.0, fid_blur_4=2.0, clip_score_judge=0.5)) == ("–", "–")
    assert label("painted.fid_pytorch_blur_4").endswith("FID as by pytorch-fid, blurred by 4 px")
