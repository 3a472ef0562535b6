"""A packaged L-Verse: the same door as the other family's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file, save_file

from diptych.model import Diptych
from diptych.model.decoding.biart import caption_codes, paint_texts
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.errors import UserError
from diptych.model.networks.aug_vae import AugVAE
from diptych.model.networks.aug_vae import named_config as named_autoencoder
from diptych.model.networks.biart import BiART, named_config
from diptych.model.packaged.directory import Common, write_l_verse_package
from diptych.model.pretrained import load_biart, save_biart
from diptych.model.serve.app import make_app
from diptych.model.tokenizer import build_tokenizer

CAPTIONS = ["a red kite floats.", "two blue boats rest on the sea."]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("l_verse") / "biart")


def save_networks(folder: Path) -> Path:
    """Networks with random weights that are not near zero."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(CAPTIONS, 1)
    autoencoder = AugVAE(named_autoencoder("smoke")).eval()
    config = named_config("smoke", vocab_size=len(tokenizer), codebook_size=64, grid_size=4)
    model = BiART(dataclasses.replace(config, initial_std=0.3)).eval()
    save_biart(folder, model, tokenizer, autoencoder)
    return folder


@pytest.fixture(scope="module")
def package(model_folder: Path) -> Path:
    return save_package(model_folder)


def save_package(model_folder: Path) -> Path:
    """A package beside the networks' folder."""
    out = model_folder.parent / "package"
    write_l_verse_package(
        out,
        model_folder=model_folder,
        captioning=CaptionOptions(length=12),
        painting=PaintOptions(method="rows"),
        common=Common(card="A card.\n"),
    )
    return out


@pytest.fixture(scope="module")
def d(package: Path) -> Diptych:
    return Diptych.from_pretrained(package, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 256, (20 + n, 30, 3), dtype=np.uint8)) for n in range(3)]


def test_it_does_what_its_networks_do(d: Diptych, model_folder: Path, pictures) -> None:
    model, tokenizer, autoencoder = load_biart(model_folder)
    codes = d.codes(pictures)
    assert codes.shape == (3, 16) and (d.grid_size, d.image_size, d.codebook_size) == (4, 32, 64)
    features = d.features(pictures)
    nearest = torch.cdist(features.flatten(0, 1), autoencoder.quantizer.embedding).argmin(-1).view(3, 16)
    assert nearest.equal(codes)
    written = caption_codes(model, tokenizer, codes, CaptionOptions(length=12))
    assert [str(caption) for caption in d.caption(pictures)] == [tokenizer.decode(ids) for ids in written.ids]
    painted = paint_texts(model, tokenizer, tokenizer.encode(CAPTIONS, 12), PaintOptions(method="rows")).codes
    found = d.paint(CAPTIONS)
    assert torch.stack([painting.codes for painting in found]).equal(painted)
    assert [painting.image.size for painting in found] == [(32, 32)] * 2
    np.testing.assert_array_equal(np.asarray(found[0].image), np.asarray(d.draw(painted[:1])[0]))


def test_options_of_the_other_family_work_or_are_refused(d: Diptych, pictures) -> None:
    steps = d.paint(CAPTIONS[0], return_steps=True)[0].steps
    assert len(steps) == 4 and (steps[0].codes[4:] == -1).all()
    given = d.codes(pictures[0])[0]
    kept = d.paint(CAPTIONS[0], codes=given, locked=[0, 7])[0]
    assert kept.codes[[0, 7]].equal(given[[0, 7]])
    several = d.paint(CAPTIONS[0], samples=3, seed=2, temperature=1.0, top_k=5, guidance=1.5)
    assert len(several) == 3 and several[0].codes.ne(several[1].codes).any()
    caption = d.caption(pictures[0], beams=3, return_attention=True)[0]
    assert caption.attention is not None and caption.attention.weights.shape == (len(caption.attention.words), 16)
    with pytest.raises(UserError, match="paints cell by cell, by method rows, not mask_predict"):
        d.paint(CAPTIONS[0], method="mask_predict")
    for call in (lambda: d.answer(pictures[0], "is it red?"), lambda: d.verify((pictures[0], pictures[1]), "it is red.")):
        with pytest.raises(UserError, match="models of its family answer no questions"):
            call()
    assert not d.can_answer and not d.can_verify and not d.has_scorer and not d.has_examples


def test_the_web_demo_serves_it(d: Diptych) -> None:
    client = TestClient(make_app(d))
    about = client.get("/api/model").json()
    assert about["grid_size"] == 4 and not about["can_answer"] and about["painting"]["method"] == "rows"
    reply = client.post("/api/paint", json={"caption": CAPTIONS[0], "return_steps": True})
    assert reply.status_code == 200 and len(reply.json()["paintings"][0]["steps"]) == 4
    refused = client.post("/api/paint", json={"caption": CAPTIONS[0], "steps": 3})
    assert refused.status_code == 422 and "by method rows" in refused.text


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_the_image_tokenizer_is_never_rounded(model_folder: Path, package: Path, kind: str, tmp_path: Path, pictures) -> None:
    out = tmp_path / kind
    options = {"captioning": CaptionOptions(length=12), "painting": PaintOptions(method="rows")}
    write_l_verse_package(out, model_folder=model_folder, **options, common=Common(weights=kind))
    small = Diptych.from_pretrained(out, device="cpu", precision="float32")
    exact = Diptych.from_pretrained(package, device="cpu", precision="float32")
    assert small.codes(pictures).equal(exact.codes(pictures)) and small.config.weights == kind
    assert (out / "model.safetensors").stat().st_size < 0.8 * (package / "model.safetensors").stat().st_size
    assert small.caption(pictures[0])[0].text


def test_what_does_not_fit_is_said(model_folder: Path, package: Path, tmp_path: Path) -> None:
    config = json.loads((package / "config.json").read_text())
    assert (config["family"], config["format_version"]) == ("l_verse", 2)
    shutil.copytree(model_folder, tmp_path / "other")
    folder = tmp_path / "other/image_tokenizer"
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**sizes, "codebook_size": 32}))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t[:32].clone() if name.startswith("quantizer.") else t for name, t in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"image_tokenizer: 32 codes and 16 cells, but the transformer was built for 64 and 16"):
        load_biart(tmp_path / "other")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"image_tokenizer/config.json: no such autoencoder config"):
        load_biart(tmp_path / "other")
    shutil.copytree(package, tmp_path / "lacking")
    sums = (tmp_path / "lacking/SHA256SUMS").read_text().splitlines(keepends=True)
    (tmp_path / "lacking/SHA256SUMS").write_text("".join(line for line in sums if "image_tokenizer" not in line))
    with pytest.raises(UserError, match="lacks image_tokenizer/config.json, which every package has"):
        Diptych.from_pretrained(tmp_path / "lacking")
