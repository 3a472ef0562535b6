"""Files of weights that people have, for importers, the perceptual encoder and folders of our own."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import find_tensors
from diptych.model.importers.convert import read_codebook
from diptych.model.importers.hugging_face import read_weights
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.objectives.perceptual import ResNetEncoder
from diptych.model.packaged.examples import read_examples
from diptych.model.pretrained import load_transformer

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:40d365715913c9da98579312b702a82c18be219c\nsize 353976522\n"
HTML = b"<!DOCTYPE html><html><body>404</body></html>"


def saved(content: object) -> bytes:
    torch.save(content, buffer := io.BytesIO())
    return buffer.getvalue()


BAD = {
    "git-lfs": (POINTER, "a pointer of git-lfs to them; run `git lfs pull`"),
    "html": (HTML, r"a web page \(HTML\), as a failed download leaves it"),
    "empty": (b"", "it is empty"),
    "truncated": (saved(STATE)[:-200], "its end is missing"),
    "half safetensors": (save(STATE)[:-4], "not a whole safetensors file"),
    "list": (saved([1]), "holds a list"),
    "code": (saved(nn.Linear(2, 2)), r"holds torch\.nn\.modules\.linear\.Linear"),
}


class Holder(nn.Module):
    """What TorchScript archives are made of here."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


def test_importers_read_what_people_have(tmp_path: Path) -> None:
    holder = Holder()
    holder.load_state_dict(STATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(holder).save(str(tmp_path / "script.pt"))
    beside = {"best": np.float64(1), "args": Namespace(out=Path("out")), "optimizer": {"lr": np.float32(0.1)}}
    (tmp_path / "numpy.pth").write_bytes(saved({"model": STATE, **beside}))
    (tmp_path / "misnamed.pth").write_bytes(save(STATE))
    for name in ("script.pt", "numpy.pth", "misnamed.pth"):
        found = find_tensors(tmp_path / name)
        assert found.keys() == STATE.keys() and all(found[key].equal(STATE[key]) for key in STATE)
    (tmp_path / "model.safetensors").write_bytes(save(STATE))
    assert read_weights(tmp_path).keys() == STATE.keys()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(saved(STATE))
    assert read_weights(tmp_path).keys() == STATE.keys()


@pytest.mark.parametrize("kind", BAD)
def test_what_no_importer_can_read_is_one_line(tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    for name in ("model.safetensors", "G_60.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a readable checkpoint .*{message}") as error:
            find_tensors(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["centroids.npy", "centroids.safetensors"])
def test_a_codebook_that_is_something_else_is_one_line(tmp_path: Path, name: str) -> None:
    for content, message in ((POINTER, "a pointer of git-lfs"), (HTML, "a web page"), (b"", "it is empty")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a readable .*{message}") as error:
            read_codebook(tmp_path / name)
        assert "\n" not in str(error.value)
    np.savez(tmp_path / "several.npy.npz", a=np.ones((2, 2)))
    (tmp_path / "several.npy.npz").rename(tmp_path / "several.npy")
    with pytest.raises(
        UserError, match=r"several\.npy: not a readable \.npy file \(.*archive of NumPy arrays"
    ):
        read_codebook(tmp_path / "several.npy")


def test_the_perceptual_encoder_reads_what_people_have(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    state, path = resnet50().state_dict(), tmp_path / "resnet50.pth"
    conv = state["conv1.weight"]
    # as in resnet50-19c8e357.pth, of before these counters, and as detection and parallel training save theirs
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    for content in (
        saved(old),
        save(state),
        saved({"state_dict": {f"module.{n}": t for n, t in state.items()}}),
    ):
        path.write_bytes(content)
        assert ResNetEncoder(path).stem[0].weight.equal(conv)
    less = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    bad = [*BAD.values(), (save(less), r"\(missing: fc\.bias\)")]
    bad.append((save({**state, "more": torch.zeros(1)}), r"\(unknown: more\)"))
    bad.append(
        (save({**state, "conv1.weight": conv.char()}), r"\(not floating-point numbers: conv1\.weight int8\)")
    )
    for content, message in bad:
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=rf"not the state dict of torchvision's resnet50 .*{message}"
        ) as error:
            ResNetEncoder(path)
        assert "\n" not in str(error.value)


def test_a_model_directory_of_another_precision_is_float32_in_memory(parts, tmp_path: Path) -> None:
    expected = load_transformer(parts.transformer)[0].state_dict()
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        folder = tmp_path / str(kind)
        shutil.copytree(parts.transformer, folder)
        for path in folder.glob("*.safetensors"):
            path.write_bytes(save({name: tensor.to(kind) for name, tensor in load_file(path).items()}))
        model, _, codebook = load_transformer(folder)
        assert codebook.dtype == torch.float32
        found = model.state_dict()
        assert all(found[name].equal(tensor.to(kind).float()) for name, tensor in expected.items())


def test_folders_of_our_own_that_are_damaged_are_one_line(parts, tmp_path: Path) -> None:
    for original, load in (
        (parts.transformer, load_transformer),
        (parts.image_generator, load_image_generator),
    ):
        folder = tmp_path / original.name
        shutil.copytree(original, folder)
        load(folder)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        first = next(name for name in tensors if name.endswith(".weight"))
        less = {name: tensor for name, tensor in tensors.items() if name != first}
        for content, message in (
            (POINTER, r"model\.safetensors: not a readable safetensors file .*a pointer of git-lfs"),
            (saved(tensors), "not safetensors but a checkpoint of PyTorch"),
            (path.read_bytes()[:-7], "not a whole safetensors file"),
            (save(less), rf"does not fit .*config\.json: missing: {first}"),
            (save({**tensors, "more": torch.zeros(1)}), r"does not fit .*config\.json: unknown: more"),
        ):
            path.write_bytes(content)
            with pytest.raises(UserError, match=message) as error:
                load(folder)
            assert "\n" not in str(error.value)
    (tmp_path / "examples.safetensors").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"examples\.safetensors: not readable .*a pointer of git-lfs"):
        read_examples(tmp_path, 0)


def test_a_model_directory_is_loaded_without_the_other_packages(parts, tmp_path: Path) -> None:
    """What a file is, only diptych-features knows; without it the reader's own words have to do."""
    shutil.copytree(parts.transformer, tmp_path / "whole")
    shutil.copytree(parts.transformer, tmp_path / "pointer")
    (tmp_path / "pointer/model.safetensors").write_bytes(POINTER)
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("diptych.features", "diptych.eval")):
            raise ModuleNotFoundError(f"{name} is absent on this machine", name=name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import find_tensors
from diptych.model.pretrained import load_transformer
load_transformer(Path("whole"))
for call in (lambda: load_transformer(Path("pointer")), lambda: find_tensors(Path("x.pth"))):
    try:
        call()
    except UserError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    damaged, absent = done.stdout.splitlines()
    assert "model.safetensors: not a readable safetensors file" in damaged
    assert "pip install diptych-model[use]" in absent
