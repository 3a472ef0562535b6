"""The directory of a packaged model: whole or not at all, verified, versioned; the Hub; packed weights; examples."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.model import Diptych
from diptych.model.decoding.options import AnswerOptions, CaptionOptions, PaintOptions
from diptych.model.errors import UserError
from diptych.model.networks.architectures import build_transformer
from diptych.model.packaged import directory
from diptych.model.packaged.directory import (
    Common,
    read_scorer,
    verify_package,
    write_package,
    write_scorer,
    write_sums,
)
from diptych.model.packaged.examples import collect_examples, cut_patch, read_examples
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.weights import pack_weights, unpack_weights


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy"))


def change_config(folder: Path, **changes) -> None:
    """Change config.json and its sum."""
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    write_sums(folder)


def test_what_is_in_a_package(package: Path) -> None:
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "SHA256SUMS",
        "codebook/codebook.safetensors",
        "codebook/examples.safetensors",
        "config.json",
        "detector/config.json",
        "detector/model.safetensors",
        "image_generator/config.json",
        "image_generator/model.safetensors",
        "model.safetensors",
        "scorer/config.json",
        "scorer/model.safetensors",
        "scorer/tokenizer.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"],
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert len((package / "SHA256SUMS").read_text().splitlines()) == len(files) - 1
    assert json.loads((package / "config.json").read_text())["format_version"] == 1
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in package.rglob("*") if path.is_file())


def test_a_package_is_a_model_directory_too(package: Path, parts) -> None:
    """So that training, importers and exporters take it."""
    ours, _, codebook = load_transformer(package)
    theirs, _, other = load_transformer(parts.transformer)
    assert codebook.equal(other) and ours.config == theirs.config
    weights = theirs.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes(b"x"),
            "model.safetensors: its sha256 is not that of",
        ),
        (lambda f: (f / "README.md").write_text("another"), "README.md: its sha256"),
        (lambda f: (f / "scorer/config.json").unlink(), "scorer/config.json: no such file; the package"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: no such file"),
        (lambda f: (f / "SHA256SUMS").write_text("nonsense"), "SHA256SUMS: not a list of sha256 sums"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS: lacks config.json"),
        (
            lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret\n"),
            "SHA256SUMS: not a list of sha256 sums",
        ),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file; .* is not a packaged model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda f: change_config(f, format_version=3), "has format 3, this program reads up to 2; upgrade"),
        (lambda f: change_config(f, format_version="1"), "format_version is '1', no whole number"),
        (lambda f: change_config(f, format_version=None), "no format_version: this is not a packaged model"),
        (lambda f: change_config(f, family="gan"), "family is 'gan', not one of unified, l_verse; upgrade"),
        (lambda f: change_config(f, weights="int4"), "weights is 'int4', not one of"),
        (lambda f: change_config(f, painting={"step": 4}), "painting: unknown option 'step'"),
        (lambda f: change_config(f, captioning={}), "captioning: .*length"),
        (lambda f: change_config(f, captioning=None), "captioning: expected an object"),
        (lambda f: change_config(f, captioning={"length": 2}), "captioning: length must be at least 3"),
        (lambda f: change_config(f, transformer={}), "config.json: unknown keys .*missing keys"),
    ],
)
def test_what_is_wrong_with_a_package_is_said(copy: Path, damage, message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message):
        Diptych.from_pretrained(copy, device="cpu")


def test_what_the_system_refuses_is_said(copy: Path, tmp_path: Path, monkeypatch) -> None:
    """A name that no file can have, a drive that fails, a place that nothing can be written to."""
    diptych = Diptych.from_pretrained(copy, device="cpu")
    sums = (copy / "SHA256SUMS").read_text()
    (copy / "SHA256SUMS").write_text(f"{sums}{'0' * 64}  {'a' * 300}\n")
    with pytest.raises(UserError, match="aaa: cannot be read .File name too long"):
        verify_package(copy)
    with pytest.raises(UserError, match="saved: cannot be made .*File name too long"):
        diptych.save_pretrained(tmp_path / "saved")
    (copy / "SHA256SUMS").write_text(sums)
    with pytest.raises(UserError, match="README.md/saved: cannot be made"):
        diptych.save_pretrained(copy / "README.md/saved")

    def fails(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(directory, "sha256_of", fails)
    with pytest.raises(UserError, match=r"config\.json|README\.md: cannot be read .Input/output error"):
        verify_package(copy)
    assert not list(tmp_path.glob("*saved*"))


@pytest.mark.parametrize(
    "changed",
    [
        {"captioning": CaptionOptions(length=12, method="sample", samples=4)},
        {"painting": PaintOptions(temperature=1.0, samples=4)},
    ],
)
def test_several_samples_need_a_scorer(parts, scorer, tmp_path: Path, changed) -> None:
    """Else every caption or painting of somebody who asks for nothing else would fail."""
    options = {"captioning": CaptionOptions(length=12), "painting": PaintOptions(), **changed}
    with pytest.raises(UserError, match=f"{next(iter(changed))}: samples is 4, .* has no scorer"):
        write_package(tmp_path / "package", **vars(parts), **options)
    assert not list(tmp_path.iterdir())
    write_package(tmp_path / "package", **vars(parts), **options, common=Common(scorer=scorer))


def test_what_the_sums_do_not_list_is_no_part_of_the_package(copy: Path) -> None:
    """Such as a scorer and examples of the package that was in this place before."""
    lines = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "scorer/" not in line and "examples" not in line]
    (copy / "SHA256SUMS").write_text("".join(kept))
    diptych = Diptych.from_pretrained(copy, device="cpu")
    assert (copy / "scorer").is_dir() and not diptych.has_scorer and not diptych.has_examples
    with pytest.raises(UserError, match="has no scorer"):
        diptych.score(diptych.draw([[0] * 64]), ["a kite."])
    with pytest.raises(UserError, match="no examples of codes"):
        diptych.examples(0)


def test_verification_can_be_left_out(copy: Path) -> None:
    (copy / "README.md").write_text("another")
    assert Diptych.from_pretrained(copy, device="cpu", verify=False).image_size == 16


def test_without_scorer_and_examples(parts, tmp_path: Path) -> None:
    options = {"captioning": CaptionOptions(length=12), "painting": PaintOptions()}
    write_package(tmp_path / "package", **vars(parts), **options)
    diptych = Diptych.from_pretrained(tmp_path / "package", device="cpu")
    assert not diptych.has_scorer and not diptych.has_examples
    for call in (
        lambda: diptych.score(diptych.draw([[0] * 64]), ["a kite."]),
        lambda: diptych.paint("a kite.", samples=2, rerank=True),
    ):
        with pytest.raises(UserError, match="has no scorer"):
            call()
    with pytest.raises(UserError, match="no examples of codes"):
        diptych.examples(0)


def test_parts_that_do_not_fit_leave_nothing(parts, tmp_path: Path, tiny) -> None:
    from diptych.model.pretrained import save_transformer

    save_transformer(tmp_path / "other", tiny.model, tiny.tokenizer, tiny.codebook)
    folders = vars(parts)
    options = {"captioning": CaptionOptions(length=12), "painting": PaintOptions()}
    with pytest.raises(UserError, match="image generator has features of 12 numbers.* of 10"):
        write_package(tmp_path / "package", **{**folders, "transformer": tmp_path / "other"}, **options)
    with pytest.raises(UserError, match="nowhere/config.json: no detector there"):
        write_package(tmp_path / "package", **{**folders, "detector": tmp_path / "nowhere"}, **options)
    with pytest.raises(UserError, match="weights: unknown kind 'int4'"):
        write_package(tmp_path / "package", **folders, **options, common=Common(weights="int4"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    (tmp_path / "package").mkdir()
    with pytest.raises(UserError, match="package: exists already"):
        write_package(tmp_path / "package", **folders, **options)


def test_save_pretrained_copies_the_package(copy: Path, tmp_path: Path) -> None:
    diptych = Diptych.from_pretrained(copy, device="cpu")
    (copy / "unrelated.bin").write_bytes(b"left by somebody")
    diptych.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/unrelated.bin").exists()
    verify_package(tmp_path / "saved")
    again = Diptych.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.paint("a kite.")[0].codes.equal(diptych.paint("a kite.")[0].codes)
    with pytest.raises(UserError, match="saved: exists already"):
        diptych.save_pretrained(tmp_path / "saved")
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model.safetensors: its sha256"):
        diptych.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_packed_weights(parts, package: Path, kind: str, tmp_path: Path, pictures) -> None:
    folder = tmp_path / kind
    options = {"captioning": CaptionOptions(length=12), "painting": PaintOptions(steps=3, guidance=1.5)}
    write_package(folder, **vars(parts), **options, common=Common(weights=kind))
    for file in ("model.safetensors", "image_generator/model.safetensors"):
        share = (folder / file).stat().st_size / (package / file).stat().st_size
        assert share < {"bfloat16": 0.75, "int8": 0.6}[kind]  # vectors, as long, weigh much in tiny networks
    diptych = Diptych.from_pretrained(folder, device="cpu", precision="float32")
    exact = Diptych.from_pretrained(package, device="cpu", precision="float32")
    assert diptych.config.weights == kind and diptych.features(pictures).equal(exact.features(pictures))
    one, other = (np.asarray(d.draw([[3] * 64])[0]).astype(int) for d in (diptych, exact))
    assert 0 < np.abs(one - other).max() < 40
    assert diptych.caption(pictures[0]) and diptych.paint("a kite.")


def test_packing_rounds_as_it_says() -> None:
    torch.manual_seed(0)
    weights = {"m": torch.randn(5, 4, 3), "v": torch.randn(7), "n": torch.arange(3), "z": torch.zeros(2, 2)}
    for kind, step in (("float32", 0.0), ("bfloat16", 2**-8), ("int8", 0.5 / 127)):
        packed = pack_weights(weights, kind)
        again = unpack_weights(packed)
        assert again.keys() == weights.keys() and again["z"].equal(weights["z"])
        assert again["v"].equal(weights["v"]) and again["n"].equal(weights["n"])
        largest = weights["m"].abs().amax((1, 2), keepdim=True)
        assert ((again["m"] - weights["m"]).abs() <= step * largest * 1.001).all()
        assert again["m"].dtype == torch.float32 and (kind == "float32") == again["m"].equal(weights["m"])
    assert pack_weights(weights, "int8")["m"].dtype == torch.int8


def test_a_pretrained_scorer_is_written_with_its_name(tmp_path: Path) -> None:
    """By a model of open_clip that is small enough to make here."""
    import open_clip

    from diptych.eval.scorers.clip import Clip

    torch.manual_seed(0)
    name = "ViT-S-32-alt"
    model = open_clip.create_model(name, pretrained=None)
    tokenize = open_clip.get_tokenizer(name)
    clip = Clip(model, tokenize, 224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD).eval()
    with pytest.raises(UserError, match="needs its name"):
        write_scorer(clip, None, tmp_path / "scorer")
    write_scorer(clip, name, tmp_path / "scorer")
    again = read_scorer(tmp_path / "scorer", "cpu")
    with torch.inference_mode():
        assert torch.allclose(again.encode_texts(["a kite"]), clip.encode_texts(["a kite"]), atol=1e-5)


def test_a_folder_comes_before_the_hub(copy: Path, tmp_path: Path, monkeypatch) -> None:
    def download(name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        return str(copy)

    asked: list = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    shutil.copytree(copy, "somebody/model")
    Diptych.from_pretrained("somebody/model", device="cpu")
    assert asked == []
    loaded = Diptych.from_pretrained("team/kites", device="cpu", revision="v1")
    assert asked == [("team/kites", "v1")] and loaded.folder == copy
    for name in ("./team/kites", "kites", "a/b/c", "/team/kites", "team/"):
        with pytest.raises(UserError, match="no such folder; give that of a packaged model"):
            Diptych.from_pretrained(name, device="cpu")
    with pytest.raises(UserError, match="README.md: a file; give the folder"):
        Diptych.from_pretrained(copy / "README.md", device="cpu")
    with pytest.raises(UserError, match="a folder, which has no revisions; leave out revision 'v1'"):
        Diptych.from_pretrained("somebody/model", device="cpu", revision="v1")
    for name in ("a" * 300, "~nobody-of-this-name/x", "./" + "a" * 300):
        with pytest.raises(UserError, match="no such folder; give that of a packaged model"):
            Diptych.from_pretrained(name, device="cpu")
    assert len(asked) == 1


def no_connection() -> Exception:
    """What the library under huggingface_hub, whichever it is, raises without a network: no OSError."""
    from huggingface_hub import errors

    library = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    error = library.ConnectError("no network\nand more")
    assert not isinstance(error, OSError)
    return error


def test_what_the_hub_refuses_is_one_message(monkeypatch) -> None:
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None, status_code=404)
    cases = {
        errors.RepositoryNotFoundError("no", response=response): "no such repository",
        errors.RevisionNotFoundError("no", response=response): "no revision 'v9'",
        errors.GatedRepoError("no", response=response): "asks for consent",
        errors.LocalEntryNotFoundError("offline"): "cannot be downloaded",
        OSError("no route"): "cannot be downloaded .no route",
        OSError(): "cannot be downloaded .OSError.",
        no_connection(): "cannot be downloaded .no network",
    }
    for error, message in cases.items():

        def download(name: str, revision: str | None = None, error=error) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(UserError, match=message):
            Diptych.from_pretrained("team/kites", device="cpu", revision="v9")


def test_push_to_hub_uploads_the_package_and_nothing_else(copy: Path, monkeypatch) -> None:
    calls: list = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(token)

        def create_repo(self, name: str, **options) -> None:
            calls.append((name, options))

        def upload_folder(self, **options) -> SimpleNamespace:
            calls.append(options)
            return SimpleNamespace(commit_url="the commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    diptych = Diptych.from_pretrained(copy, device="cpu")
    (copy / "secret.txt").write_text("mine")
    assert diptych.push_to_hub("team/kites", private=True, token="t") == "the commit"
    assert calls[:2] == ["t", ("team/kites", {"private": True, "exist_ok": True})]
    assert calls[2]["repo_id"] == "team/kites" and calls[2]["folder_path"] == copy
    assert "secret.txt" not in calls[2]["allow_patterns"] and "SHA256SUMS" in calls[2]["allow_patterns"]
    assert calls[2]["delete_patterns"] == "*"  # files of the package that was there before
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="its sha256"):
        diptych.push_to_hub("team/kites")
    assert len(calls) == 3


def test_an_upload_that_fails_is_one_message(diptych: Diptych, monkeypatch) -> None:
    for error, message in ((no_connection(), "no network"), (OSError(), "OSError")):

        class Api:
            def __init__(self, token: str | None = None) -> None: ...

            def create_repo(self, name: str, error=error, **options) -> None:
                raise error

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        with pytest.raises(UserError, match=rf"team/kites: cannot be uploaded \({message}\)"):
            diptych.push_to_hub("team/kites")


def test_examples_are_the_nearest_cells(tmp_path: Path) -> None:
    """Against a plain search over all cells."""
    random = np.random.default_rng(0)
    features = random.standard_normal((9, 64, 4)).astype(np.float16)
    centroids = random.standard_normal((70, 4)).astype(np.float32)
    gaps = np.linalg.norm(features[:, :, None].astype(np.float32) - centroids, axis=3)
    codes = gaps.argmin(2)
    images = [Image.fromarray(random.integers(0, 256, (48, 32, 3)).astype(np.uint8)) for _ in range(9)]
    batches = [(np.arange(9)[part], features[part], codes[part]) for part in (slice(0, 4), slice(4, 9))]
    found = collect_examples(batches, lambda index: images[index], centroids, 3, 12)
    for code in range(70):
        nearest = []
        for picture in range(9):
            own = np.where(codes[picture] == code, gaps[picture, :, code], np.inf)
            if np.isfinite(own.min()):
                nearest.append((own.min(), picture, int(own.argmin())))
        nearest = sorted(nearest)[:3]
        kept = np.isfinite(found.distances[code])
        assert found.distances[code][kept] == pytest.approx([gap for gap, _, _ in nearest], abs=1e-5)
        for patch, (_, picture, cell) in zip(found.patches[code], nearest, strict=False):
            assert np.array_equal(patch, np.asarray(cut_patch(images[picture], cell, 12)))
        assert not found.patches[code][~kept].any()
    found.save(tmp_path)
    assert [len(read_examples(tmp_path, code)) for code in range(70)] == np.isfinite(found.distances).sum(
        1
    ).tolist()
    assert np.asarray(read_examples(tmp_path, 7)[0]).tolist() == found.patches[7, 0].tolist()


def test_a_patch_is_the_cell_and_its_neighbours() -> None:
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))
    assert np.array_equal(np.asarray(cut_patch(image, 9, 24)), np.asarray(image)[:24, :24])
    corner = np.asarray(cut_patch(image, 0, 24))
    assert not corner[:8].any() and np.array_equal(corner[8:, 8:], np.asarray(image)[:16, :16])


def test_a_model_of_statements_alone_keeps_how_they_are_read(parts, tmp_path: Path) -> None:
    model, tokenizer, codebook = load_transformer(parts.transformer)
    verifying = build_transformer(replace(model.config, pairs=True))
    verifying.set_codebook(codebook)
    save_transformer(tmp_path / "transformer", verifying, tokenizer, codebook)
    write_package(
        tmp_path / "package", transformer=tmp_path / "transformer", image_generator=parts.image_generator,
        detector=parts.detector, captioning=CaptionOptions(length=12), painting=PaintOptions(steps=3),
        answering=AnswerOptions(length=24),
    )  # fmt: skip
    d = Diptych.from_pretrained(tmp_path / "package", device="cpu")
    assert d.can_verify and not d.can_answer and d.config.answering.length == 24
