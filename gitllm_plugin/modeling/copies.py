"""Copies that attention reads and the backward pass makes again, in the place of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def made_again(states: list[Tensor], make: Callable[[int], Tensor]) -> AbstractContextManager[Any]:
    """Let the backward pass make ``states`` again, by their number, instead of keeping them: they are copies."""
    # With strides, because some kernels save a transposed view, which may have the same shape.
    numbers = {(made.data_ptr(), made.shape, made.stride()): number for number, made in enumerate(states)}

    def pack(saved: Tensor) -> Tensor | int:
        return numbers.get((saved.data_ptr(), saved.shape, saved.stride()), saved)

    def unpack(packed: Tensor | int) -> Tensor:
        return packed if isinstance(packed, Tensor) else make(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
