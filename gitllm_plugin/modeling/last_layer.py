"""The last layer's feed-forward part, where only the slots count that the head reads.

Of what the last decoder layer gives, training reads the supervised slots alone.  Attention needs all of them as
keys and values, but behind it every slot is computed by itself: two thirds of the layer's work can be left out,
forward and backward, without changing a bit of loss or gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_NAMES = (("mlp", "mlp"), ("ffn", "ffn"), ("fc1", "fc2"))
"""Where a feed-forward part begins and ends, by the names that decoders give to modules of a layer."""


def feed_forward(language_model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """First and last module of the last layer's feed-forward part; None where it has none by a known name."""
    layers = max((m for m in language_model.modules() if isinstance(m, nn.ModuleList)), key=len, default=None)
    if layers is None:
        return None
    parts = dict(layers[-1].named_children())
    return next(((parts[first], parts[last]) for first, last in _NAMES if first in parts and last in parts), None)


@contextmanager
def at_slots(part: tuple[nn.Module, nn.Module], keep: Tensor) -> Iterator[None]:
    """Let the modules from ``part[0]`` to ``part[1]`` compute at the slots ``keep`` (bool ``[R, S]``) alone.

    Elsewhere they give zeros, which nobody may read.
    """
    slots = keep.flatten().nonzero()[:, 0]
    shape = keep.shape

    def take(module: nn.Module, args: Any) -> Any:
        nonlocal shape
        shape = args[0].shape[:-1]  # some decoders flatten rows here, others count on three dimensions
        as_one_row = [1] * (len(shape) - 1)
        return tuple(
            states.reshape(-1, states.shape[-1]).index_select(0, slots).view(*as_one_row, len(slots), -1)
            for states in args
        )

    def put_back(module: nn.Module, args: Any, output: Any) -> Any:
        states, *others = output if isinstance(output, tuple) else (output,)  # some experts give their routing too
        states = states.flatten(0, -2)
        rows = states.new_zeros(keep.numel(), states.shape[-1]).index_copy_(0, slots, states).view(*shape, -1)
        return (rows, *others) if isinstance(output, tuple) else rows

    handles = [part[0].register_forward_pre_hook(take), part[1].register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
