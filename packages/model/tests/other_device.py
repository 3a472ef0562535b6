"""A device that is not the CPU, on a machine that has no other.

It calls itself ``cuda:0`` and computes on the CPU, so that all results are there to be compared; but as on a GPU its tensors and the
CPU's do not mix, and whatever makes the host wait for the device is written down with the function of Diptych's that asked for it:

* an answer of the device: ``item``, ``tolist``, ``if tensor``, ``.cpu()``, ``equal``;
* a result whose size only the device knows: ``nonzero``, masks as indices, ``unique``, ``repeat_interleave`` by a tensor;
* a copy to the device that is not from pinned memory or not ``non_blocking``, for such a copy waits for all work before it. So does
  ``torch.tensor(..., device=...)``.

That is what ``torch.cuda.set_sync_debug_mode`` reports. What it can not know is which kernels a GPU lacks and what its arithmetic
makes of numbers.

How: a tensor of the device is a subclass that wraps one of the CPU's (``inner``). Its ``device`` is a property of Python's, for
torch's own C++ would look for a driver behind any device but the CPU. Autocast for ``cuda`` becomes that for the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
UNKNOWN_SIZES = {
    aten.nonzero, aten.masked_select, aten.unique_consecutive, aten._unique2, aten.unique_dim, aten.bincount,
}  # fmt: skip
ANSWERS = {aten._local_scalar_dense, aten.equal}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# What is told on the CPU by design, such as the lengths of packed texts.
TOLD_ON_THE_CPU = {aten._pack_padded_sequence, aten._pad_packed_sequence, aten._pack_padded_sequence_backward}


class Mixed(RuntimeError):
    """Tensors of the CPU and of the device in one operation."""


class OnDevice(Tensor):
    """A tensor of the device; its numbers are those of ``inner``."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    # so that Module.to swaps a parameter's whole content, and not its numbers alone
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> OnDevice:
        return OnDevice(parts["inner"])

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = operation.overloadpacket
        if packet is aten.copy_:
            return copied(operation, args, kwargs)
        flat = tensors(args) + tensors(kwargs.values())
        hosts = [leaf for leaf in flat if not isinstance(leaf, OnDevice)]
        if packet in INDEXING:
            indices = [index for index in args[1] if index is not None]
            masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
            fills = packet is not aten.index and len(indices) == 1 and args[2].numel() == 1
            if masks and not fills:
                OtherDevice.wait("indexing by a mask")
            if any(not isinstance(index, OnDevice) for index in indices):
                OtherDevice.wait("indexing by the CPU's numbers")
            hosts = [leaf for leaf in hosts if not any(leaf is index for index in indices)]
        elif packet in UNKNOWN_SIZES or packet in ANSWERS:
            OtherDevice.wait(packet.__name__)
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            OtherDevice.wait("repeat_interleave without output_size")
        if any(host.dim() for host in hosts) and packet not in TOLD_ON_THE_CPU:
            raise Mixed(f"{operation} mixes tensors of cuda:0 and cpu: {[tuple(leaf.shape) for leaf in flat]}")
        result = operation(*inner_of(args), **inner_of(kwargs))
        if packet in ANSWERS:
            return result
        if packet is aten._pack_padded_sequence:
            return OnDevice(result[0]), result[1]
        wrapped = outer_of(result)
        return return_and_correct_aliasing(operation, args, kwargs, wrapped) if aliases(operation) else wrapped


@functools.cache
def aliases(operation: Any) -> bool:
    """Whether it changes or shares what it is given."""
    return any(argument.alias_info is not None for argument in operation._schema.arguments)


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those among the arguments of an operation, which are tensors or lists of them at most."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(value)
    return found


def inner_of(values: Any) -> Any:
    """The CPU's tensors in the place of the device's."""
    if isinstance(values, OnDevice):
        return values.inner
    if isinstance(values, list | tuple):
        return type(values)(map(inner_of, values))
    return {name: inner_of(value) for name, value in values.items()} if isinstance(values, dict) else values


def outer_of(values: Any) -> Any:
    """The device's tensors in the place of the CPU's."""
    if isinstance(values, Tensor):
        return OnDevice(values)
    return type(values)(map(outer_of, values)) if isinstance(values, list | tuple) else values


def copied(operation: Any, args: Any, kwargs: Any) -> Any:
    """``target.copy_(source)``, the one operation that may take tensors of both."""
    target, source, *others = args
    unlike = isinstance(target, OnDevice) != isinstance(source, OnDevice)
    if unlike and source.dim() and not (kwargs.get("non_blocking") or any(others)):
        OtherDevice.wait("copy_")
    operation(inner_of(target), inner_of(source))
    return target


def is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


class OtherDevice(TorchFunctionMode):
    """The device while it is entered; ``waits`` are (function of Diptych's, what it waited for)."""

    current: OtherDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[tuple[str, str]] = set()
        self.calls: list[bool] = []  # of torch's functions that run now, whether they were given tensors of the device

    @staticmethod
    def wait(what: str) -> None:
        """Write down that the host waits."""
        if OtherDevice.current is not None:
            OtherDevice.current.waits.add((asking(sys._getframe(1)), what))

    @property
    def waiting(self) -> set[str]:
        """The functions that waited."""
        return {function for function, _ in self.waits}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors(args) + tensors((kwargs or {}).values())
        self.calls.append(any(isinstance(tensor, OnDevice) for tensor in given))
        try:
            return self.called(function, args, kwargs)
        finally:
            self.calls.pop()

    def called(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.moved(function, args, kwargs)
        first = args[0] if args else None
        if isinstance(first, OnDevice):
            if function is Tensor.tolist:
                self.wait("tolist")
                return first.inner.tolist()
            if function is Tensor.numpy:
                return first.numpy()
            if function is Tensor.new_tensor:
                self.wait("new_tensor")
                return OnDevice(first.inner.new_tensor(*args[1:], **kwargs))
            if function is torch._VF._pad_packed_sequence:
                return unpacked(*args)
            if function == Tensor.data.__set__:
                torch.utils.swap_tensors(first, nn.Parameter(args[1], requires_grad=first.requires_grad))
                return None
        if not is_device(kwargs.get("device")):
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor):
            self.wait(function.__name__)
        made = function(*args, **{**kwargs, "device": "cpu"})
        return made if isinstance(made, OnDevice) or not isinstance(made, Tensor) else OnDevice(made)

    def moved(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        """``tensor.to(...)``, ``.cpu()``, ``.cuda()``."""
        source, *others = args
        if function is not Tensor.to:
            others.insert(0, "cpu" if function is Tensor.cpu else DEVICE)
        if others and isinstance(others[0], Tensor):
            others[:1] = [others[0].device, others[0].dtype]
        kwargs = {name: value for name, value in kwargs.items() if name != "copy"}
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*others, **kwargs)
        here = isinstance(source, OnDevice)
        if device is None or is_device(device) == here:
            wanted = {} if layout is None else {"memory_format": layout}
            return source.to(dtype or source.dtype, **wanted)
        if source.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("a copy between devices with a gradient")
        if here or not (non_blocking and getattr(source, "pinned", False)):
            self.wait("copy to the CPU" if here else "copy to the device")
        inner = (source.inner if here else source).detach()
        inner = inner.to(dtype or inner.dtype, memory_format=layout or torch.preserve_format, copy=True)
        return inner if here else OnDevice(inner)


def unpacked(data: Tensor, batch_sizes: Tensor, batch_first: bool, value: float, length: int) -> tuple:
    """What torch makes of packed texts, whose lengths are the CPU's and whose states are the device's: its own mixes both."""
    counts = batch_sizes.tolist() + [0] * max(0, length - len(batch_sizes))
    rows = [
        nn.functional.pad(step, (0, 0, 0, counts[0] - len(step)), value=value) for step in data.split(counts)
    ]
    lengths = torch.tensor([sum(count > row for count in counts) for row in range(counts[0])])
    return torch.stack(rows, 1 if batch_first else 0), lengths


class Inside(TorchDispatchMode):
    """What torch makes inside a function of the device's tensors, such as zeros in a backward pass, is the device's."""

    def __init__(self, device: OtherDevice) -> None:
        super().__init__()
        self.other = device

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        makes = isinstance(result, Tensor) and not isinstance(result, OnDevice) and not tensors(args)
        return OnDevice(result) if makes and self.other.calls and self.other.calls[-1] else result


def asking(frame: FrameType | None) -> str:
    """The innermost function of a Diptych package among the callers."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("diptych."):
            return f"{name.removeprefix('diptych.model.')}.{frame.f_code.co_qualname.replace('.<locals>', '')}"
        frame = frame.f_back
    return "a test"


@contextlib.contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherDevice]:
    """The device, and what torch says of a machine that has one."""

    def pinned(tensor: Tensor, *_: Any) -> Tensor:
        copy = tensor.clone()
        copy.pinned = True  # type: ignore[attr-defined]
        return copy

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *settings: Any, **more: Any) -> None:
            super().__init__("cpu" if device_type == DEVICE.type else device_type, *settings, **more)

    to = nn.Module.to

    def module_to(self: nn.Module, *places: Any, **more: Any) -> nn.Module:
        if places and isinstance(places[0], OnDevice):
            places = (DEVICE, places[0].dtype, *places[1:])
        return to(self, *places, **more)

    grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype

    def grouped_there(*args: Any, **kwargs: Any) -> Any:
        found = grouped(*args, **kwargs)
        return {
            (DEVICE if isinstance(group[0][0], OnDevice) else device, dtype): (group, places)
            for (device, dtype), (group, places) in found.items()
        }

    run_backward = torch.autograd._engine_run_backward

    def run_backward_there(*args: Any, **kwargs: Any) -> Any:
        # a mode is off while it handles a function, and this one handles Tensor.backward
        with device:
            device.calls.append(True)
            try:
                return run_backward(*args, **kwargs)
            finally:
                device.calls.pop()

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", run_backward_there)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(nn.Module, "to", module_to)
    monkeypatch.setattr(torch, "autocast", Autocast)
    # a wrapper can be no view of one that is made outside of inference mode
    monkeypatch.setattr(
        torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()
    )
    monkeypatch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped_there))
    device = OtherDevice.current = OtherDevice()
    try:
        with Inside(device), device:
            yield device
    finally:
        OtherDevice.current = None
