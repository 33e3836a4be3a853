"""A device that computes behind the host, simulated on a CPU: what waits for it, or reads from it, is found without one.

Its tensors hold ordinary ones of the CPU, so that values are right, and say that they are elsewhere. As with a GPU,
tensors of two devices do not mix. Each operation for which a GPU would make the host wait is noted as a :class:`Stop`,
with the line that asked for it: reading a value, operations whose result's size depends on values, and copies to the
device from memory that is not pinned.

Not simulated: time, streams, memory, kernels of the device's own.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_SHOWN = ("/gitllm_plugin/", "/tests/", "/transformers/", "/peft/", "/torch/optim/", "/torch/nn/")
_ATEN = torch.ops.aten
_SIZED_BY_VALUES = {
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
    _ATEN.unique_consecutive.default,
    _ATEN.repeat_interleave.Tensor,
    _ATEN.bincount.default,
}
_READ = {_ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.is_nonzero.default}
_INDEXING = {
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
    _ATEN._unsafe_index.Tensor,
    _ATEN._unsafe_index_put.default,
}


class _Backend:
    """What torch asks of a device's module."""

    @staticmethod
    def is_available() -> bool:
        return False  # nobody who looks for a device is to find this one

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend)
DEVICE = torch.device(NAME, 0)


@dataclass(frozen=True)
class Stop:
    """Something for which the host waits for the device.

    Attributes:
        what: the operation.
        file, line: who asked for it; in a backward pass the name of its step.
    """

    what: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.what}"


class OnDevice(Tensor):
    """A tensor of the simulated device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Lets operations that make tensors, and those that copy, come here too."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


_stops: list[Stop] = []
_pinned: list[Tensor] = []


@contextmanager
def simulated_device() -> Iterator[list[Stop]]:
    """Simulate the device inside the block; gives the list to which stops are added."""
    _stops.clear()
    try:
        with _Mode():
            yield _stops
    finally:
        _pinned.clear()


def on_device(module: nn.Module) -> nn.Module:
    """Move a module's parameters and buffers to the device, in place; those that share memory share it there."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for table, is_parameter in ((part._parameters, True), (part._buffers, False)):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in moved:
                    copy = OnDevice(value.detach().clone())
                    moved[id(value)] = nn.Parameter(copy, value.requires_grad) if is_parameter else copy
                table[name] = moved[id(value)]
    return module


def held(value: Any) -> Any:
    """Give the values of tensors, in whatever holds them, as tests compare them; this is no stop."""
    return tree_map(lambda part: part.held if isinstance(part, OnDevice) else part, value)


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = tree_flatten((args, kwargs))[0]
    there = [value for value in flat if isinstance(value, OnDevice)]
    here = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, OnDevice)]
    if operation is _ATEN.is_pinned.default:
        return bool(here) and _is_pinned(here[0])
    if operation in (_ATEN._to_copy.default, _ATEN._pin_memory.default):
        return _copied(operation, args[0], kwargs)
    if operation is _ATEN.copy_.default:
        _note_copy(args[1], args[0], len(args) > 2 and args[2] or kwargs.get("non_blocking", False))
        held(args[0]).copy_(held(args[1]))
        return args[0]
    _note(operation, args, there, here)
    device = kwargs.get("device")
    goes_there = bool(there) if device is None else torch.device(device).type == NAME
    pinned = kwargs.get("pin_memory") or False
    changed = {"device": torch.device("cpu")} if device is not None else {}
    changed |= {"pin_memory": False} if pinned else {}
    out = operation(*held(args), **{**held(kwargs), **changed})
    if pinned:
        _pinned.append(out)
    if not goes_there:
        return out
    known = {id(tensor.held): tensor for tensor in there} if operation._schema.is_mutable else {}

    def there_again(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        return known[id(part)] if id(part) in known else OnDevice(part)

    return tree_map(there_again, out)


def _copied(operation: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Copy to another dtype, layout or device."""
    if operation is _ATEN._pin_memory.default:
        _pinned.append(source.clone())
        return _pinned[-1]
    device = kwargs.get("device")
    goes_there = isinstance(source, OnDevice) if device is None else torch.device(device).type == NAME
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    out = _ATEN._to_copy.default(held(source), **rest)
    _note_copy(source, goes_there, kwargs.get("non_blocking", False))
    return OnDevice(out) if goes_there else out


def _note_copy(source: Tensor, target: Tensor | bool, non_blocking: bool) -> None:
    goes_there = target if isinstance(target, bool) else isinstance(target, OnDevice)
    if isinstance(source, OnDevice) and not goes_there:
        _stop("copy to the host")
    elif not isinstance(source, OnDevice) and goes_there and not (non_blocking and _is_pinned(source)):
        _stop("copy from the host" + ("" if _is_pinned(source) else ", from memory that is not pinned"))


def _note(operation: Any, args: Any, there: list[OnDevice], here: list[Tensor]) -> None:
    """Note what waits for the device, and refuse what a GPU refuses."""
    if not there:
        return
    mixed = [tuple(value.shape) for value in here if value.ndim]
    if operation in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _stop(f"{operation} by a mask")
        if mixed and isinstance(args[0], OnDevice) and all(isinstance(a, OnDevice) for a in args[2:3]):
            _stop(f"{operation} by an index of the host")
            return
    if mixed:
        raise RuntimeError(f"{operation} of tensors on two devices: those of shapes {mixed} are on the CPU")
    if operation in _READ or operation in _SIZED_BY_VALUES:
        _stop(str(operation))


def _is_pinned(tensor: Tensor) -> bool:
    address = tensor.untyped_storage().data_ptr()
    return any(buffer.untyped_storage().data_ptr() == address for buffer in _pinned)


def _stop(what: str) -> None:
    what = what.removeprefix("aten.").removesuffix(".default")
    node = torch._C._current_autograd_node()
    if node is not None:
        _stops.append(Stop(what, f"backward pass, {node.name()}", 0))
        return
    for frame, line in reversed(list(traceback.walk_stack(sys._getframe(1)))[::-1]):
        file = frame.f_code.co_filename
        if file != __file__ and any(part in file for part in _SHOWN):
            _stops.append(Stop(what, file.rpartition("site-packages/")[2], line))
            return
    _stops.append(Stop(what, "unknown", 0))
