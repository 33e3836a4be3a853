"""What a computation would take of memory, found without taking it: its floating numbers have shapes and no values.

Tensors of weights and activations are torch's fake tensors, which take no memory and no time. Tensors that are made of
integers and truth values alone are real, because programs ask for their values: which token stands where decides
shapes.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

Place = Any
"""Where a program is, by whatever name its caller gives it; can be hashed."""

_aten = torch.ops.aten
_FACTORIES = {_aten.empty, _aten.empty_strided, _aten.zeros, _aten.ones, _aten.full, _aten.rand, _aten.randn}
_DEVICE = torch.ops.prim.device.default
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_Module = TypeVar("_Module", bound=nn.Module)


class WithoutNumbers(TorchDispatchMode):
    """Inside, modules are made without memory for their weights: what is floating is on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a tensor, floating ones without numbers."""
        kwargs = dict(kwargs or {})
        if func.overloadpacket in _FACTORIES and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


class Simulation(TorchDispatchMode):
    """Computes without floating numbers inside :meth:`running`, and notes the most that would be held at once.

    Tensors are on the CPU as far as programs can tell. What kernels take for themselves while they compute is not seen.

    Attributes:
        place: where the program is; set by whoever knows.
        held: bytes of all tensors that are alive.
        peaks: by place, the most bytes held there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place: Place = None
        self.held = 0
        self.peaks: dict[Place, int] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: dict[int, tuple[weakref.ref[Any], int]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compute without numbers inside the block."""

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            # No operation, so that the mode does not see it; FSDP2 frees and allocates gathered weights by it.
            resized = resized_by_torch(storage, size)
            if storage._cdata in self._storages:
                self._note(storage)
            return resized

        resized_by_torch = torch.UntypedStorage.resize_
        with ExitStack() as stack:
            stack.enter_context(patch.object(torch.UntypedStorage, "resize_", resize))
            # Torch makes these by an old constructor, which no mode may see.
            stack.enter_context(patch.object(CausalBias, "__new__", _make_bias))
            # Tensors that share memory are told by its address, also where there is none.
            stack.enter_context(patch.object(FakeTensor, "data_ptr", _address, create=True))
            stack.enter_context(self)
            yield

    def begin(self) -> None:
        """Forget the peaks so far; what is held counts on."""
        self.peaks = {}

    def fake(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Give a tensor as a simulation has it: without numbers where it is floating, else itself."""
        if not value.is_floating_point():
            return value
        with self._fake:
            made = torch.empty(value.shape, dtype=dtype or value.dtype, device="cpu")
        if isinstance(value, nn.Parameter):
            made = nn.Parameter(made, requires_grad=value.requires_grad)
        return made

    def copy_of(self, module: _Module, shared: Iterable[Any] = (), dtype: torch.dtype | None = None) -> _Module:
        """Copy a module without its numbers; weights that are tied stay tied.

        Args:
            module: with real weights, or made in :class:`WithoutNumbers`.
            shared: objects inside it that the copy refers to too.
            dtype: of all floating weights; None: each its own.
        """
        memo: dict[int, Any] = {id(each): each for each in shared}
        parts = [each for each in memo.values() if isinstance(each, nn.Module)]
        apart = {id(value) for part in parts for value in (*part.parameters(), *part.buffers())}
        with self.running():
            for value in (each for each in (*module.parameters(), *module.buffers()) if id(each) not in apart):
                memo[id(value)] = self.fake(value, dtype)
                self._note(memo[id(value)].untyped_storage())
            return copy.deepcopy(module, memo)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute for real what is made of real tensors, else without numbers."""
        if func is _DEVICE:  # asked for by half of all calls
            return func(*args)
        kwargs = kwargs or {}
        if active_fake_mode() is not None:  # torch itself asks for a shape: what is made for it is never held
            return func(*args, **kwargs)
        if any(not issubclass(kind, (FakeTensor, nn.Parameter)) and kind is not Tensor for kind in types):
            return NotImplemented  # DTensors come back as what they are made of
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            result = func(*args, **kwargs)
        else:
            if func in _INDEXED:
                args = (args[0], _by_numbers(args[1]), *args[2:])
            # As inside the mode, without entering it anew for each.
            result = self._fake.__torch_dispatch__(func, types, args, kwargs)
            if not tensors and isinstance(result, Tensor) and (not result.is_floating_point() or result.numel() <= 1):
                result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        self.peaks[self.place] = max(self.held, self.peaks.get(self.place, 0))
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._storages.get(key)
        if known is None:
            reference = weakref.ref(storage, lambda _: self._forget(key))
        elif known[1] == size:
            return
        else:
            reference = known[0]
            self.held -= known[1]
        self._storages[key] = reference, size
        self.held += size

    def _forget(self, key: int) -> None:
        self.held -= self._storages.pop(key)[1]


def _by_numbers(indices: Iterable[Any]) -> list[Any]:
    """Write real masks among the indices as the numbers of what they choose: how many is known then."""
    found: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero(as_tuple=True) if is_mask else [index]
    return found


def _make_bias(cls: type[CausalBias], *args: Any) -> CausalBias:
    with _disable_current_modes():
        return Tensor.__new__(cls)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size()
