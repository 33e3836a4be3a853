"""Linear layers that are handed slices: torch multiplies those row by row, with copies of the whole weight.

``linear`` of a slice such as ``hidden[:, -1:]`` cannot be one product of two matrices without a copy. torch makes the
copy where the weight's gradient is wanted; elsewhere (frozen weights, no gradients) it takes a batched product and
repeats the weight for every row. For a head of 50,000 words in bfloat16 on a CPU that is 200 times slower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def give_contiguous_input(module: nn.Module) -> None:
    """Let a linear layer see contiguous input alone, in place.

    A hook of the layer itself, so that it goes where the layer goes: into a copy, a LoRA layer around it and out
    again, into FSDP's and the compiler's hands. Once a layer, however often it is asked for.
    """
    if _make_contiguous not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_make_contiguous)


def _make_contiguous(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    weight = module.weight
    # torch copies by itself here; another layout of the input would change the last bit of training losses.
    if torch.is_grad_enabled() and isinstance(weight, torch.Tensor) and weight.requires_grad:
        return None
    return (args[0].contiguous(), *args[1:])
