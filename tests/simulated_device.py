"""A device that computes behind the host, simulated on a CPU: what waits for it is found without one.

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
from torch.library import Library, fallthrough_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_SHOWN = ("/torch/optim/", "/torch/nn/")
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
    def get_rng_state(device: Any = 0) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.uint8)  # the CPU's generator draws everything

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = 0) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend)
DEVICE = torch.device(NAME, 0)

_AUTOCAST = "AutocastPrivateUse1"
_LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "scaled_dot_product_attention")
_RAISED = ("softmax.int", "log_softmax.int", "cross_entropy_loss", "layer_norm", "rms_norm")
"""What autocast of a GPU computes in the lower precision, and what in float32."""


def _autocast_like_a_gpu() -> Iterator[Library]:
    """Let autocast know the device: torch has no rules for one of somebody's own."""
    everything = Library("_", "IMPL")
    everything.fallback(fallthrough_kernel, _AUTOCAST)
    yield everything
    some = Library("aten", "IMPL")
    for names, lowers in ((_LOWERED, True), (_RAISED, False)):
        for name in names:
            some.impl(name, _casting(name, lowers), _AUTOCAST)
    yield some


def _casting(name: str, lowers: bool) -> Any:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(_ATEN, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME) if lowers else torch.float32

        def cast(part: Any) -> Any:
            is_float = isinstance(part, Tensor) and part.is_floating_point() and part.dtype != torch.float64
            return part.to(dtype) if is_float else part

        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = tree_map(cast, (args, kwargs))
            return operation(*args, **kwargs)

    return run


_libraries = tuple(_autocast_like_a_gpu())  # which end when nobody holds them


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


class _Numbers(TorchFunctionMode):
    """Makes tensors of Python's numbers and back: on a GPU, too, they are copied, which is waited for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part).to(DEVICE) if isinstance(part, list) else part for part in parts)
            return function(args[0], index, *args[2:])
        made_there = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        device = kwargs.get("device")
        if not made_there or device is None or torch.device(device).type != NAME:
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


_stops: list[Stop] = []
_pinned: list[Tensor] = []


@contextmanager
def simulated_device() -> Iterator[list[Stop]]:
    """Simulate the device inside the block; gives the list to which stops are added."""
    _stops.clear()
    try:
        with _Mode(), _Numbers():
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
    # From the innermost on; what is torch's own shows nothing.
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        file = frame.f_code.co_filename
        own = file == __file__ or "/torch/" in file
        if not own or any(part in file for part in _SHOWN):
            _stops.append(Stop(what, file.rpartition("site-packages/")[2], line))
            return
