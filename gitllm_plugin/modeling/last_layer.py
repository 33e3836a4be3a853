"""The head, and the last layer's feed-forward module, where only some slots count.

Of what the last decoder layer gives, training reads the supervised slots alone.  Attention needs all of them as
keys and values, but behind it every slot is computed by itself: two thirds of the layer's work can be left out,
forward and backward, without changing a bit of loss or gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_NAMES = (("mlp", "mlp"), ("ffn", "ffn"), ("fc1", "fc2"))
"""Where a feed-forward module begins and ends, by the names that decoders give to a layer's children."""


@contextmanager
def compute_at(language_model: PreTrainedModel, slots: Tensor | None, in_last_layer: bool = True) -> Iterator[None]:
    """Compute logits ``[n, V]``, and what they alone read, at some slots inside the block.

    Args:
        language_model: a causal LM of transformers.
        slots: long ``[n]``, counted through all rows; None: at all slots, as always.
        in_last_layer: whether the last layer leaves out the others too.
    """
    if slots is None:
        yield
        return
    last = feed_forward(language_model) if in_last_layer else None
    head = cast(nn.Module, language_model.get_output_embeddings())
    # By a hook, because transformers' own `logits_to_keep` takes the same slots of every row.
    handle = head.register_forward_pre_hook(lambda module, args: (taken(args[0], slots),), prepend=True)
    try:
        with nullcontext() if last is None else at_slots(last, slots):
            yield
    finally:
        handle.remove()


def taken(states: Tensor, slots: Tensor) -> Tensor:
    """Take states ``[R, S, D]`` at slots counted through all rows: ``[n, D]``."""
    return states.flatten(0, -2).index_select(0, slots)


def feed_forward(language_model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Find the first and last module of the last layer's feed-forward; None where it has none by a known name."""
    layers = max((m for m in language_model.modules() if isinstance(m, nn.ModuleList)), key=len, default=None)
    if layers is None:
        return None
    children = dict(layers[-1].named_children())
    return next(
        ((children[first], children[last]) for first, last in _NAMES if first in children and last in children), None
    )


@contextmanager
def at_slots(span: tuple[nn.Module, nn.Module], slots: Tensor) -> Iterator[None]:
    """Let the modules from ``span[0]`` to ``span[1]`` compute at some slots, long ``[n]``, alone.

    Elsewhere they give zeros, which nobody may read.
    """
    shape = torch.Size()

    def take(module: nn.Module, args: Any) -> Any:
        nonlocal shape
        # Some decoders flatten rows here, others count on three dimensions.
        shape = args[0].shape[:-1]
        as_one_row = [1] * (len(shape) - 1)
        return tuple(taken(states, slots).view(*as_one_row, len(slots), -1) for states in args)

    def put_back(module: nn.Module, args: Any, output: Any) -> Any:
        # Some experts give their routing too.
        states, *others = output if isinstance(output, tuple) else (output,)
        states = states.flatten(0, -2)
        rows = states.new_zeros(shape.numel(), states.shape[-1]).index_copy_(0, slots, states).view(*shape, -1)
        return (rows, *others) if isinstance(output, tuple) else rows

    handles = [span[0].register_forward_pre_hook(take), span[1].register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
