"""Weights that people have, for `--clip` and `--inception`: OpenAI's TorchScript archives, odd checkpoints, what is no file
of weights."""

from __future__ import annotations

import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from diptych.eval.command.app import main
from diptych.eval.errors import UserError
from diptych.eval.images.inception import Inception
from diptych.eval.scorers.clip import ClipConfig, build_clip, load_clip, load_pretrained_clip, save_clip
from diptych.eval.scorers.inspector import InspectorConfig, build_inspector, load_inspector, save_inspector

NAME = "tiny-weights"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:40d365715913c9da98579312b702a82c18be219c\nsize 353976522\n"
HTML = b"<!DOCTYPE html><html><body>404</body></html>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{NAME}.json").write_text(json.dumps({**TINY, "quick_gelu": False}))
    (folder / f"{NAME}-quickgelu.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    torch.manual_seed(5)
    return open_clip.create_model(f"{NAME}-quickgelu").eval()


class Holder(nn.Module):
    """A module with the weights of another and other code, as OpenAI's archives are to open_clip's model."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, Holder({}))
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(path: Path, tensors: dict[str, Tensor]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Holder(tensors), torch.zeros(1)).save(str(path))
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def openai(model: nn.Module) -> dict[str, Tensor]:
    """As in ViT-B-32.pt: halves, and three numbers beside them."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    marks = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return {**tensors, **{name: torch.tensor(value) for name, value in marks.items()}}


def test_openai_s_archive_is_read_as_open_clip_reads_its_state_dict(model: nn.Module, tmp_path: Path) -> None:
    path = archive(tmp_path / "ViT-B-32.pt", openai(model))
    clip = load_pretrained_clip(f"{NAME}-quickgelu", path)
    plain = {name: tensor for name, tensor in openai(model).items() if name in model.state_dict()}
    torch.save(plain, tmp_path / "plain.pt")
    expected = open_clip.create_model(f"{NAME}-quickgelu", pretrained=str(tmp_path / "plain.pt"))
    assert equal(clip.model, expected) and next(clip.model.parameters()).dtype == torch.float32
    assert not clip.model.training


def test_openai_s_weights_under_a_name_without_quickgelu_are_refused(
    model: nn.Module, tmp_path: Path
) -> None:
    """The same shapes and other numbers: nothing else would tell."""
    path = archive(tmp_path / "ViT-B-32.pt", openai(model))
    with pytest.raises(UserError, match=rf"QuickGELU; give {NAME}-quickgelu instead of {NAME}$"):
        load_pretrained_clip(NAME, path)


@pytest.mark.parametrize(
    "kind", ["plain", "wrapped", "legacy", "parallel", "numpy", "safetensors", "renamed"]
)
def test_other_files_are_read_as_open_clip_reads_them(
    model: nn.Module, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    state, path = model.state_dict(), tmp_path / "weights.pt"
    if kind == "plain":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "legacy":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    elif kind == "parallel":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    elif kind == "numpy":
        torch.save({"state_dict": state, "best": np.float64(0.3)}, path)
    else:
        path = path.with_suffix(".safetensors" if kind == "safetensors" else ".bin")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    with caplog.at_level(logging.WARNING):
        clip = load_pretrained_clip(NAME, path)
    assert equal(clip.model, model) and not caplog.records
    if kind not in ("numpy", "renamed"):
        assert equal(open_clip.create_model(NAME, pretrained=str(path)), clip.model)


def test_weights_for_another_picture_size_are_resized_as_open_clip_does(
    model: nn.Module, tmp_path: Path
) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    wide = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 64}, "init_logit_bias": -10}
    (folder / "tiny-weights-wide.json").write_text(json.dumps(wide))
    open_clip.add_model_config(folder)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = load_pretrained_clip("tiny-weights-wide", tmp_path / "weights.pt")
    expected = open_clip.create_model("tiny-weights-wide", pretrained=str(tmp_path / "weights.pt"))
    assert equal(clip.model, expected) and clip.image_size == 64 and not expected.logit_bias.any()


def whole(model: nn.Module) -> bytes:
    torch.save(model.state_dict(), buffer := io.BytesIO())
    return buffer.getvalue()


def changed(model: nn.Module, **changes: Tensor | None) -> bytes:
    state = {**model.state_dict(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return save({name: tensor.contiguous() for name, tensor in state.items() if tensor is not None})


BAD = {
    "git-lfs": (lambda model: POINTER, "a pointer of git-lfs to them; run `git lfs pull`"),
    "html": (lambda model: HTML, "a web page"),
    "empty": (lambda model: b"", "it is empty"),
    "truncated": (lambda model: whole(model)[:-1000], "its end is missing"),
    "missing": (
        lambda model: changed(model, ln_final__bias=None),
        r"\(missing: ln_final.bias\); give the name",
    ),
    "too many": (lambda model: changed(model, more=torch.zeros(1)), r"\(unknown: more\); give the name"),
    "shape": (
        lambda model: changed(model, ln_final__bias=torch.zeros(3)),
        r"\(of another shape: ln_final.bias \[3\] instead of \[16\]\)",
    ),
    "quantized": (
        lambda model: changed(model, ln_final__bias=torch.zeros(16, dtype=torch.int8)),
        r"\(not floating-point numbers: ln_final.bias int8\)",
    ),
    "no CLIP": (lambda model: save({"x": torch.zeros(1)}), r"\(missing: .* more; unknown: x\)"),
    "no scale": (lambda model: changed(model, logit_scale=torch.zeros(3)), "not weights of open_clip's"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_clip_is_said_in_one_line(model: nn.Module, tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    path = tmp_path / "weights.pt"
    path.write_bytes(content(model))
    with pytest.raises(UserError, match=rf"weights\.pt: .*{message}") as error:
        load_pretrained_clip(NAME, path)
    assert "\n" not in str(error.value)


def test_the_command_ends_in_that_line(
    model: nn.Module, tmp_path: Path, drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for kind in ("generated", "real"):
        (tmp_path / kind).mkdir()
        Image.fromarray(drawn[0][0].permute(1, 2, 0).numpy()).save(tmp_path / kind / "1.png")
    folders = [str(tmp_path / "generated"), str(tmp_path / "real")]
    (tmp_path / "ViT-B-32.pt").write_bytes(POINTER)
    pytest.importorskip("torch_fidelity")
    for options in (
        ["--clip", f"b32={NAME}:{tmp_path}/ViT-B-32.pt"],
        ["--inception", f"{tmp_path}/ViT-B-32.pt"],
    ):
        assert main(["images", *folders, *options]) != 0
        said = capsys.readouterr().err.strip()
        assert "ViT-B-32.pt: " in said and "a pointer of git-lfs" in said
        assert "Traceback" not in said and "\n" not in said


def test_folders_of_our_own_that_are_damaged_are_said(tmp_path: Path, drawn) -> None:
    _, captions, objects = drawn
    config = ClipConfig(16, 16, 1, 16, 4, 8, 16, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_clip(build_clip(config, captions[:5], seed=0), tmp_path / "clip")
    save_inspector(build_inspector(InspectorConfig(32, (8, 8)), objects, 0), tmp_path / "inspector")
    for folder, load in ((tmp_path / "clip", load_clip), (tmp_path / "inspector", load_inspector)):
        load(folder)
        originals = {path.name: path.read_bytes() for path in folder.iterdir()}
        tensors = load_file(folder / "model.safetensors")
        first = next(name for name in tensors if name.endswith(".weight"))
        less = save({name: tensor for name, tensor in tensors.items() if name != first})
        description = json.loads(originals["config.json"])
        bad = [
            ("model.safetensors", POINTER, "a pointer of git-lfs"),
            ("model.safetensors", b"", "it is empty"),
            ("model.safetensors", originals["model.safetensors"][:-9], "not a whole safetensors file"),
            ("model.safetensors", less, rf"does not fit .*config\.json \(missing: {first}\)"),
            ("model.safetensors", save({**tensors, "more": torch.zeros(1)}), r"\(unknown: more\)"),
            ("config.json", b"", "not valid JSON"),
            ("config.json", HTML, "not valid JSON"),
            ("config.json", b"[]", "format is None"),
            (
                "config.json",
                json.dumps({**description, "architecture": {"x": 1}}).encode(),
                "no architecture",
            ),
            ("tokenizer.json", HTML, "not a tokenizer"),
        ]
        for name, content, message in bad:
            if name in originals:
                (folder / name).write_bytes(content)
                with pytest.raises(UserError, match=rf"{name}.*{message}") as error:
                    load(folder)
                assert "\n" not in str(error.value)
                (folder / name).write_bytes(originals[name])


@pytest.fixture(scope="module")
def inception_state() -> dict[str, Tensor]:
    """Random weights of torch-fidelity's network."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        return network.FeatureExtractorInceptionV3("x", ["2048"]).state_dict()


def test_inception_is_read_from_what_people_have(
    inception_state: dict[str, Tensor], tmp_path: Path, drawn
) -> None:
    torch.save(inception_state, tmp_path / "plain.pth")
    expected = Inception(tmp_path / "plain.pth")(drawn[0][:1])
    torch.save({"state_dict": inception_state, "best": np.float32(1)}, tmp_path / "numpy.pth")
    archive(tmp_path / "script.pt", inception_state)
    for name in ("numpy.pth", "script.pt"):
        assert torch.equal(Inception(tmp_path / name)(drawn[0][:1]), expected)


def test_what_is_no_inception_is_said_in_one_line(inception_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    less = {name: tensor for name, tensor in inception_state.items() if name != "fc.bias"}
    torch.save(inception_state, buffer := io.BytesIO())
    for content, message in (
        (POINTER, "a pointer of git-lfs"),
        (HTML, "a web page"),
        (b"", "it is empty"),
        (buffer.getvalue()[:-1000], "its end is missing"),
        (save(less), r"\(missing: fc\.bias\)"),
        (
            save({**inception_state, "fc.bias": torch.ones(1008, dtype=torch.int8)}),
            r"\(not floating-point.*int8\)",
        ),
        (save({**inception_state, "more": torch.zeros(1)}), r"\(unknown: more\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"not the Inception weights.*{message}.*; download") as error:
            Inception(path)
        assert "\n" not in str(error.value)
