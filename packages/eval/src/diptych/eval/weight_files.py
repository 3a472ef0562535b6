"""Files of weights as people have them: what a file is, and the tensors in it. Nothing that a file holds is executed.

The packages features and eval do not know each other and read the same files, so that each has this file; a test keeps the
two equal to the letter. It imports nothing of either. `diptych.model` uses that of features. What it says of a file is a
predicate, which the caller puts behind the path.
"""

from __future__ import annotations

import ast
import pickle
import re
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WRAPPERS = ("model", "state_dict", "model_state_dict")
# Bytes that are read to recognise a file, and those that safetensors allows its header.
_HEAD, _LONGEST_HEADER = 1024, 100_000_000
_AGAIN = "copy or download it again"
_ALONE = "have whoever made it save the state dict alone"


class UnreadableWeights(Exception):
    """Why a file is not read, as a predicate without the path: what it is, and what to do."""


# ---- what a file is ----------------------------------------------------------------------------------------------

_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of git-lfs to them; run `git lfs pull` in its clone"),
    (b"outs:\n", "a pointer of DVC to them; run `dvc pull`"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"BZh", "compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a rar archive; unpack it"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file; convert it to safetensors, or take PyTorch's version of these weights"),
    (b"GGUF", "a GGUF file; take PyTorch's version of these weights"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"%PDF", "a PDF document"),
)


def what_it_is(path: Path, error: Exception | None = None) -> str:
    """Why `path` was not read as weights, told by its first bytes.

    error: what the reader said, for files that look right.
    """
    if path.is_dir():
        return "not a file of weights but a folder; give the file in it"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as problem:
        return f"not readable ({problem.strerror or problem})"
    if not head.strip(b"\0"):
        content = f"{size} zero bytes" if size else "empty"
        return f"not a file of weights: it is {content}, as an interrupted download leaves it; {_AGAIN}"
    said = f" ({_first_line(error)})" if error else ""
    if head.startswith(b"PK"):
        return _what_a_zip_is(path, size, said)
    if _begins_as_safetensors(head):
        return f"not a whole safetensors file: damaged, or cut short at {size} bytes{said}; {_AGAIN}"
    if head.startswith(b"\x80"):
        return (
            f"not a checkpoint of PyTorch that can be read: a pickle of {size} bytes that is cut short, or that "
            f"torch.save did not write{said}; {_AGAIN}, or {_ALONE}"
        )
    return f"not a file of weights but {_what_else(path, head, size)}"


def why_no_safetensors(path: Path, error: Exception) -> str:
    """`what_it_is` for a reader of safetensors, which takes nothing else."""
    reason = what_it_is(path, error)
    if reason.startswith("not a checkpoint"):
        return "not safetensors but a checkpoint of PyTorch (.pth), which is not read here"
    return reason


def why_no_array(path: Path, error: Exception) -> str:
    """`what_it_is` for a file that NumPy did not read as an array; it takes all that it does not know for a pickle."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(1) in (b"\x80", b"\x93"):  # a pickle indeed, or an array that is damaged
                return str(error)
    return what_it_is(path, error)


def _what_else(path: Path, head: bytes, size: int) -> str:
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if tarfile.is_tarfile(path):
        return "a tar archive; unpack it and give the file of weights in it"
    try:
        text = head.decode("utf-8-sig", "strict" if size <= _HEAD else "ignore").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or any(not (letter.isprintable() or letter.isspace()) for letter in text):
        return f"{size} bytes of an unknown kind (they begin with {head[:8].hex(' ')}); {_AGAIN}"
    if text.startswith("<"):
        page = "an XML page" if text.startswith("<?xml") else "a web page (HTML)"
        return f"{page}, as a failed download leaves it; download the file itself"
    kind = "JSON text" if text[0] in "{[" else "text"
    return f"{kind} that begins {text[:40]!r}; give the file of weights itself"


def _what_a_zip_is(path: Path, size: int, said: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return (
            f"not a whole file of weights: it begins as PyTorch's do, but its end is missing or damaged, cut short at {size} "
            f"bytes; {_AGAIN}"
        )
    inner = {name.partition("/")[2] for name in names} | set(names)
    if "model.json" in inner:
        return "a TorchScript archive of PyTorch before 1.4, which is not read; save its state dict with that version"
    if "data.pkl" in inner:
        return f"not a checkpoint of PyTorch that can be read{said}; {_AGAIN}, or {_ALONE}"
    if names and all(name.endswith(".npy") for name in names):
        return "not a file of PyTorch's weights but an archive of NumPy arrays (.npz)"
    first = f" ({names[0]!r}, ...)" if names else ""
    return (
        f"not a file of weights but a zip archive of {len(names)} other files{first}; give the weights in it"
    )


def _begins_as_safetensors(head: bytes) -> bool:
    return 2 <= int.from_bytes(head[:8], "little") <= _LONGEST_HEADER and head[8:9] == b"{"


def _first_line(error: Exception) -> str:
    """The first line of an error that says what it is; torch wraps that of its unpickler in advice."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return (text.splitlines()[0][:200] if text else "") or type(error).__name__


# ---- reading -----------------------------------------------------------------------------------------------------


class _Inert:
    """Stands for an object beside the weights, such as a numpy scalar: nothing of it is kept."""

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Plain values that trainings save beside their weights. None of these classes is made: `_Inert` takes its place.
_HARMLESS = [
    (_Inert, name)
    for name in (
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
        ),
        "numpy.dtype",
        "numpy.ndarray",
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
        ),
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        "torch.torch_version.TorchVersion",
        "builtins.frozenset",
        "builtins.slice",
        "builtins.range",
    )
]


def read_weights(path: Path) -> Any:
    """What a file of weights holds, on the CPU, whatever its name ends with: a checkpoint of `torch.save` (read with
    `weights_only=True`), a TorchScript archive (its state dict) or safetensors.

    Raises FileNotFoundError, and UnreadableWeights for any other file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableWeights(what_it_is(path, error)) from None
    if _begins_as_safetensors(head):
        return read_safetensors(path)
    try:
        if head.startswith(b"PK") and (prefix := _torchscript_prefix(path)) is not None:
            return _read_torchscript(path, prefix)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read ends below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file makes readers raise of any kind
        refused = re.search(r"GLOBAL (\S+)|class '?([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UnreadableWeights(
                f"holds {refused[1] or refused[2]}, which only code in the file can restore, and is not read for "
                f"that; {_ALONE}"
            ) from None
        raise UnreadableWeights(what_it_is(path, error)) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises FileNotFoundError, and UnreadableWeights for any other file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UnreadableWeights(why_no_safetensors(path, error)) from None


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file by name, and the names of what lies beside their dict.

    A checkpoint is a dict of tensors, or holds one as one of `WRAPPERS`; its neighbours (optimizer, step) are left alone.
    Raises as `read_weights`, and UnreadableWeights where there is no dict of tensors, or something else among them.
    """
    content, beside = read_weights(path), []
    while isinstance(content, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is None:
            break
        beside += [str(name) for name in content if name != wrapper]
        content = content[wrapper]
    if not isinstance(content, dict):
        raise UnreadableWeights(f"not a dict of tensors: it holds a {type(content).__name__}; {_ALONE}")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise UnreadableWeights(f"not a dict of tensors ({_listed(others) or 'it is empty'}); {_ALONE}")
    hollow = [name for name, tensor in content.items() if tensor.is_meta]
    if hollow:  # torch would load them as if they were there, and leave the network random
        raise UnreadableWeights(f"tensors without values in it ({_listed(hollow)}); {_AGAIN}, or {_ALONE}")
    packed = [
        name for name, tensor in content.items() if tensor.is_quantized or tensor.layout != torch.strided
    ]
    if packed:
        raise UnreadableWeights(
            f"quantized or sparse tensors in it ({_listed(packed)}); take the weights as floats"
        )
    return content, beside


def bare_name(name: str) -> str:
    """A tensor's name without what parallel training and torch.compile put before it."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names in the network itself, where all have something before them (:func:`bare_name`)."""
    bare = {bare_name(name): tensor for name, tensor in tensors.items()}
    return tensors if tensors.keys() & bare.keys() or len(bare) < len(tensors) else bare


def load_into(network: nn.Module, tensors: dict[str, Tensor], assign: bool = False) -> None:
    """`network.load_state_dict`, which refuses whole numbers in the place of weights too. The network keeps its precision.

    Raises UnreadableWeights: which tensors are missing, unknown, of another shape or of another kind.
    """
    own = network.state_dict()
    if wrong := of_another_kind(own, tensors):
        raise UnreadableWeights(wrong)
    if assign:  # torch would take over the file's precision too
        tensors = {
            name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in tensors.items()
        }
    try:
        network.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        raise UnreadableWeights(misfit(error)) from None


def of_another_kind(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """One line for tensors that are whole or complex numbers where a network's are floats, or nothing.

    torch takes them without a word: the steps of a quantized checkpoint for its weights.
    """
    wrong = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in tensors.items()
        if name in wanted and wanted[name].is_floating_point() and not tensor.is_floating_point()
    ]
    return f"not floating-point numbers: {_listed(wrong)}" if wrong else ""


def misfit(error: RuntimeError) -> str:
    """One line for what `load_state_dict` says of weights that do not fit: how many names, and the first of them."""
    problems = []
    for line in str(error).splitlines()[1:]:
        names = re.findall(r'"([^"]+)"', line)
        if "Missing key" in line:
            problems.append(f"missing: {_listed(names)}")
        elif "Unexpected key" in line:
            problems.append(f"unknown: {_listed(names)}")
    shapes = re.findall(r"size mismatch for (\S+): [^[]*(\[[^]]*\])[^[]*(\[[^]]*\])", str(error))
    if shapes:
        wrong = [f"{name} {found} instead of {wanted}" for name, found, wanted in shapes]
        problems.append(f"of another shape: {_listed(wrong)}")
    return "; ".join(problems) or _first_line(error)


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---- TorchScript -------------------------------------------------------------------------------------------------

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# What the writer of TorchScript puts around attributes that are lists or dicts.
_ANNOTATIONS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
# How its code begins for each module, with the attributes that are weights. Early versions do not list buffers.
_MODULE = re.compile(
    r"^class (\w+)\(Module\):\n(?:  __parameters__ = (\[.*\])\n)?(?:  __buffers__ = (\[.*\])\n)?",
    re.MULTILINE,
)


def _torchscript_prefix(path: Path) -> str | None:
    """The folder in a TorchScript archive that holds everything, with a slash; None where a zip is none."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    for name in names:
        prefix = name.removesuffix("constants.pkl")
        if prefix != name and prefix.count("/") <= 1 and f"{prefix}data.pkl" in names:
            return prefix
    return None


class _Script:
    """A module of a TorchScript archive: its attributes, without its code. A class of this kind is made for each name."""

    name = ""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"class {self.name} has a state of its own")
        self.attributes = state


class _ScriptUnpickler(pickle.Unpickler):
    """Reads the modules of a TorchScript archive; makes tensors and `_Script` and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _ANNOTATIONS:
            return lambda value, *_: value
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_Script", (_Script,), {"name": f"{module}.{name}"})
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        if len(self.storages[key]) != count:
            raise ValueError(f"the tensor data/{key} is cut short")
        return self.storages[key]


def _read_torchscript(path: Path, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers as `torch.jit.load(path).state_dict()` has them; no code in the archive is compiled or run."""
    with zipfile.ZipFile(path) as archive:
        order = f"{prefix}byteorder"
        if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
            raise ValueError("numbers in the byte order of another kind of computer")
        registered: dict[str, list[str] | None] = {}
        for name in archive.namelist():
            if name.startswith(f"{prefix}code/__torch__") and name.endswith(".py"):
                module = name.removeprefix(f"{prefix}code/").removesuffix(".py").replace("/", ".")
                for found in _MODULE.finditer(archive.read(name).decode()):
                    listed = found[2] and found[3]
                    names = ast.literal_eval(found[2]) + ast.literal_eval(found[3]) if listed else None
                    registered[f"{module}.{found[1]}"] = names
        return dict(_tensors_of(_ScriptUnpickler(archive, prefix).load(), registered, ""))


def _tensors_of(
    module: Any, registered: dict[str, list[str] | None], before: str
) -> Iterator[tuple[str, Tensor]]:
    """registered: of each class of modules the attributes that are weights; None: every tensor."""
    if not isinstance(module, _Script) or module.name not in registered:
        raise pickle.UnpicklingError(f"class {getattr(module, 'name', type(module).__name__)}")
    names = registered[module.name]
    for name in module.attributes if names is None else names:
        if isinstance(module.attributes.get(name), Tensor):  # a parameter may be None
            yield before + name, module.attributes[name]
    for name, value in module.attributes.items():
        if isinstance(value, _Script) and value.name in registered:
            yield from _tensors_of(value, registered, f"{before}{name}.")
