"""Files of weights that people have: read where that is safe, else one line that says what the file is."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from diptych.features.codebook.reading import load_cluster_sizes, load_codebook
from diptych.features.errors import UserError
from diptych.features.importers.centroids import read_centroids
from diptych.features.weight_files import (
    UnreadableWeights,
    load_into,
    misfit,
    read_safetensors,
    read_state_dict,
    read_weights,
    without_prefix,
)

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1, 2], dtype=torch.int64)}


def saved(content: Any, as_zip: bool = True, protocol: int = 2) -> bytes:
    torch.save(
        content, buffer := io.BytesIO(), _use_new_zipfile_serialization=as_zip, pickle_protocol=protocol
    )
    return buffer.getvalue()


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(found) == set(expected) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


class Scripted(nn.Module):
    """Attributes of all kinds that a TorchScript archive has: weights, halves, shared ones, lists, plain tensors."""

    def __init__(self, shares: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.parts = nn.ModuleList([nn.BatchNorm1d(3), nn.Linear(3, 3)])
        self.register_buffer("constant", torch.ones(2), persistent=False)
        self.register_buffer("image_size", torch.tensor(224))
        self.halved = nn.Parameter(torch.randn(2, 3).half())
        self.turned = nn.Parameter(torch.randn(3, 2).t())
        if shares:
            self.shared = self.layer.weight
        self.no_weight = torch.ones(4)
        self.counts, self.names, self.both = [1, 2], {"a": 1.0}, [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        for module in self.parts:
            x = module(self.layer(x))
        return x + self.no_weight.sum() + self.counts[0] + self.names["a"] + self.both[0] + self.halved.sum()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit calls itself deprecated; people's archives stay
        torch.jit.script(Scripted()).save(str(tmp_path / "ViT.pt"))
    return tmp_path / "ViT.pt"


def test_a_torchscript_archive_gives_its_state_dict(script: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(script)).state_dict()
    assert equal(read_weights(script), dict(expected)) and "no_weight" not in expected and len(expected) == 14
    assert read_state_dict(script)[1] == []
    traced = script.with_name("traced.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Scripted(shares=False).eval(), torch.ones(2, 3)).save(str(traced))
        expected = torch.jit.load(str(traced)).state_dict()
    assert equal(read_weights(traced), dict(expected))


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a zip archive whose members are changed, or left out where `change` says None."""
    other = path.with_name("other.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            if (content := change(name, source.read(name))) is not None:
                target.writestr(name, content)
    return other


def test_no_code_of_a_torchscript_archive_is_compiled_or_run(script: Path, tmp_path: Path) -> None:
    expected = read_weights(script)

    def spoil(name: str, content: bytes) -> bytes:
        return content.replace(b"def forward", b"never compiles(") if name.endswith(".py") else content

    broken = rewritten(script, spoil)
    with warnings.catch_warnings(), pytest.raises(RuntimeError):
        warnings.simplefilter("ignore")
        torch.jit.load(str(broken))
    assert equal(read_weights(broken), expected)

    trap = pickle.dumps(Payload(tmp_path / "trap"), protocol=2)
    mined = rewritten(script, lambda name, content: trap if name.endswith("/data.pkl") else content)
    with pytest.raises(UnreadableWeights, match=r"^holds \S*mkdir, which only code"):
        read_weights(mined)
    assert not (tmp_path / "trap").exists()
    pickle.loads(trap)
    assert (tmp_path / "trap").exists()  # it was a trap


def test_a_torchscript_archive_without_a_tensor_is_damaged(script: Path) -> None:
    lacking = rewritten(script, lambda name, content: None if name.endswith("/data/0") else content)
    with pytest.raises(UnreadableWeights, match="not a checkpoint of PyTorch that can be read"):
        read_weights(lacking)
    short = rewritten(script, lambda name, content: content[:-2] if name.endswith("/data/0") else content)
    with pytest.raises(UnreadableWeights, match="not a checkpoint of PyTorch that can be read"):
        read_weights(short)
    turned = rewritten(script, lambda name, content: b"big" if name.endswith("/byteorder") else content)
    with pytest.raises(UnreadableWeights, match="byte order"):
        read_weights(turned)


class Payload:
    """Unpickled by a trusting reader, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


HARMLESS = {
    "best": np.float64(0.3),
    "step": np.int64(7),
    "name": np.str_("x"),
    "flag": np.bool_(True),
    "losses": np.arange(3.0),
    "kind": np.dtype("f4"),
    "args": argparse.Namespace(lr=1e-4, out=PurePosixPath("out"), seed=np.int32(3)),
    "when": datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC),
    "set": {1, 2},
    "frozen": frozenset([1]),
    "torch": torch.__version__,
    "device": torch.device("cpu"),
    "optimizer": {"state": {}, "param_groups": [{"lr": np.float32(0.1)}]},
}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_harmless_objects_beside_the_weights_do_not_hinder(
    tmp_path: Path, as_zip: bool, wrapper: str
) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(saved({wrapper: STATE, **HARMLESS}, as_zip))
    before = len(torch.serialization.get_safe_globals())
    tensors, beside = read_state_dict(path)
    assert equal(tensors, STATE) and beside == list(HARMLESS)
    assert len(torch.serialization.get_safe_globals()) == before  # allowed for this file alone


def test_numpy_1_s_scalars_do_not_hinder(tmp_path: Path) -> None:
    (tmp_path / "new.pth").write_bytes(saved({"model": STATE, "best": np.float64(0.3)}))
    path = rewritten(tmp_path / "new.pth", lambda _, content: content.replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert equal(read_state_dict(path)[0], STATE)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin", "weights"])
def test_the_content_counts_and_not_the_ending(tmp_path: Path, name: str) -> None:
    for content in (save(STATE), saved(STATE), saved(STATE, as_zip=False)):
        (tmp_path / name).write_bytes(content)
        assert equal(read_state_dict(tmp_path / name)[0], STATE)


def tar(content: bytes) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        entry = tarfile.TarInfo("model.pth")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def array(content: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), content)
    return buffer.getvalue()


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"40d365" * 10 + b"abcd\nsize 353976522\n"
)
BAD = {
    "git-lfs": (POINTER, r"a pointer of git-lfs to them; run `git lfs pull`"),
    "dvc": (b"outs:\n- md5: 123\n  path: x.pth\n", r"a pointer of DVC to them; run `dvc pull`"),
    "empty": (b"", r"it is empty.*download it again"),
    "zeros": (bytes(5000), r"5000 zero bytes.*download it again"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", r"a web page \(HTML\), as a failed download leaves it"),
    "html with mark": (b"\xef\xbb\xbf<html>" + b"x" * 9000, r"a web page \(HTML\)"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', r"an XML page, as a failed download"),
    "json": (b'{"error": "Repository not found"}', r"JSON text that begins '\{\"error\": \"Repository"),
    "text": (b"Entry not found", r"text that begins 'Entry not found'"),
    "gzip": (b"\x1f\x8b\x08" + bytes(range(90)), r"compressed by gzip; unpack it"),
    "tar": (tar(b"weights"), r"a tar archive; unpack it"),
    "npy": (array(np.ones(3)), r"a NumPy array"),
    "npz": (zipped(**{"a.npy": array(np.ones(2))}), r"an archive of NumPy arrays"),
    "other zip": (zipped(**{"readme.txt": b"x", "b.txt": b"y"}), r"a zip archive of 2 other files \('readme"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), r"an HDF5 file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), r"a picture \(PNG\)"),
    "noise": (bytes(range(255, 127, -1)) * 9, r"1152 bytes of an unknown kind \(they begin with ff fe fd"),
    "half": (saved(STATE)[:-300], r"its end is missing or damaged, cut short at \d+ bytes.*again"),
    "first bytes": (saved(STATE)[:10], r"its end is missing"),
    "half, old": (saved(STATE, as_zip=False)[:-20], r"cut short"),
    "safetensors, half": (save(STATE)[:-5], r"not a whole safetensors file.*cut short at \d+ bytes"),
    "safetensors, no end": (save(STATE)[:40], r"not a whole safetensors file"),
    "safetensors, no JSON": (struct.pack("<Q", 8) + b"{}}}}}}}", r"not a whole safetensors file"),
    "plain pickle": (pickle.dumps({"a": [1.0]}, protocol=4), r"a pickle of \d+ bytes.*torch.save did not write"),
    "other protocol": (saved(STATE, protocol=4), r"not a checkpoint of PyTorch that can be read"),
    "list": (saved([1, 2]), r"not a dict of tensors: it holds a list"),
    "nothing": (saved({}), r"not a dict of tensors \(it is empty\)"),
    "numbers": (saved({"model": {"lr": 0.1}}), r"not a dict of tensors \(lr\)"),
    "number among them": (saved({**STATE, "epoch": 3}), r"not a dict of tensors \(epoch\)"),
    "no values": (saved({"a": torch.zeros(2, device="meta")}), r"tensors without values in it \(a\)"),
    "sparse": (saved({"a": torch.eye(2).to_sparse()}), r"quantized or sparse tensors in it \(a\)"),
    "quantized": (saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}), r"quantized or sparse"),
    "a module": (saved(nn.Linear(2, 2)), r"holds torch\.nn\.modules\.linear\.Linear, which only code"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, kind: str, name: str) -> None:
    content, message = BAD[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableWeights, match=message) as error:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_folder_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_weights, read_safetensors):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "absent.pth")
        with pytest.raises(UnreadableWeights, match="not a file of weights but a folder"):
            read(tmp_path)


def test_our_own_files_are_safetensors_alone(tmp_path: Path) -> None:
    """`No pickle anywhere`: where a model directory says safetensors, a checkpoint is refused."""
    for as_zip in (True, False):
        (tmp_path / "model.safetensors").write_bytes(saved(STATE, as_zip))
        with pytest.raises(UnreadableWeights, match="not safetensors but a checkpoint of PyTorch"):
            read_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "script"])
def test_whatever_is_damaged_no_other_error_comes_out(tmp_path: Path, script: Path, kind: str) -> None:
    contents = {"zip": saved(STATE), "legacy": saved(STATE, as_zip=False), "safetensors": save(STATE)}
    whole = contents.get(kind) or script.read_bytes()
    random, path, refused = np.random.default_rng(0), tmp_path / "damaged.pt", 0
    for attempt in range(150):
        content = bytearray(whole)
        if attempt % 3 == 0:
            del content[int(random.integers(len(content))) :]
        else:
            for place in random.integers(min(len(content), 2000), size=attempt % 5 + 1):
                content[place] = int(random.integers(256))
        path.write_bytes(content)
        try:
            read_state_dict(path)
        except UnreadableWeights as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_a_misfit_names_what_is_missing_too_many_and_of_another_shape() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    state = network.state_dict()

    def refused(changed: dict[str, Tensor]) -> str:
        with pytest.raises(RuntimeError) as error:
            network.load_state_dict(changed)
        return misfit(error.value)

    without = {name: tensor for name, tensor in state.items() if name != "1.bias"}
    assert refused(without) == "missing: 1.bias"
    assert refused({**state, "2.bias": torch.zeros(1)}) == "unknown: 2.bias"
    assert refused({**state, "0.bias": torch.zeros(4)}) == "of another shape: 0.bias [4] instead of [3]"
    assert refused({**without, "x": torch.zeros(1)}) == "missing: 1.bias; unknown: x"
    assert refused({}) == "missing: 0.weight, 0.bias, 1.weight and 1 more"
    assert misfit(RuntimeError("another text\nwith lines")) == "another text"


def test_kinds_of_numbers_that_torch_would_take_without_a_word() -> None:
    """Steps of a quantized checkpoint are no weights; half precision and counters saved as floats are harmless."""
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for kind in (torch.int8, torch.bool):
        changed = {**state, "0.weight": torch.zeros(3, 2, dtype=kind)}
        network.load_state_dict(changed)  # torch takes it
        with pytest.raises(UnreadableWeights, match=r"^not floating-point numbers: 0\.weight (int8|bool)$"):
            load_into(network, changed)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        load_into(network, {name: tensor.to(kind) for name, tensor in state.items()})
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
        assert network[0].weight.equal(state["0.weight"].to(kind).float())
    with torch.device("meta"):
        empty = nn.Linear(2, 3)
    load_into(empty, {"weight": torch.ones(3, 2).half(), "bias": torch.ones(3).half()}, assign=True)
    assert empty.weight.dtype == torch.float32 and empty.weight.sum() == 6
    with pytest.raises(UnreadableWeights, match=r"^missing: 0\.weight, .* and 3 more$"):
        load_into(network, {})


def test_what_parallel_training_puts_before_all_names_is_taken_away() -> None:
    before = {f"_orig_mod.module.{name}": tensor for name, tensor in STATE.items()}
    assert equal(without_prefix(before), STATE) and without_prefix(STATE) is STATE
    assert equal(
        without_prefix({f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()}), STATE
    )
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert without_prefix(mixed) is mixed and without_prefix({}) == {}


def test_a_codebook_that_is_something_else_is_said(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    for kind in ("git-lfs", "html", "empty", "safetensors, half"):
        content, message = BAD[kind]
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"codebook\.safetensors: damaged \(.*{message}"):
            load_codebook(tmp_path)
        with pytest.raises(UserError, match=rf"codebook\.safetensors: not a readable safetensors.*{message}"):
            read_centroids(path, 3)
        (tmp_path / "centroids.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"centroids\.npy: not an \.npy file of numbers"):
            read_centroids(tmp_path / "centroids.npy", 3)
    (tmp_path / "centroids.npy").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"a pointer of git-lfs to them; run `git lfs pull`"):
        read_centroids(tmp_path / "centroids.npy", 3)
    save_file({"sizes": torch.ones(2, dtype=torch.int64)}, path)
    assert load_cluster_sizes(tmp_path).tolist() == [1, 1]
    with pytest.raises(UserError, match=r"no tensor 'centroids' in it"):
        load_codebook(tmp_path)


def test_centroids_of_half_precision_are_read(tmp_path: Path) -> None:
    centroids = torch.arange(6.0).view(2, 3)
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        save_file({"centroids": centroids.to(kind)}, tmp_path / "codebook.safetensors")
        found = read_centroids(tmp_path / "codebook.safetensors", 3)
        assert found.dtype == np.float32 and found.tolist() == centroids.tolist()


def test_a_detector_folder_that_is_something_else_is_said(tmp_path: Path) -> None:
    from diptych.features.detector.load import load_detector
    from diptych.features.detector.network import Detector, DetectorConfig, save_detector

    save_detector(Detector(DetectorConfig(32, (8, 8, 8, 8), 8, 8), ["kite"], ["red"]), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = read_safetensors(weights)
    first = next(name for name in tensors if name.endswith(".weight"))
    # made before the file is written anew, since `tensors` are memory maps of it
    whole, halves = save(tensors), save({name: tensor.half() for name, tensor in tensors.items()})
    for content, message in (
        (POINTER, r"model\.safetensors: not a file of weights but a pointer of git-lfs"),
        (save({name: tensor for name, tensor in tensors.items() if name != first}), f"missing: {first}"),
        (save({**tensors, "more": torch.zeros(1)}), "unknown: more"),
    ):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            load_detector(tmp_path)
        assert "\n" not in str(error.value)
    weights.write_bytes(halves)
    assert {tensor.dtype for tensor in load_detector(tmp_path).state_dict().values()} <= {
        torch.float32,
        torch.int64,
    }
    weights.write_bytes(whole)
    for text in ("[1]", json.dumps({"format": 1})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError):
            load_detector(tmp_path)
