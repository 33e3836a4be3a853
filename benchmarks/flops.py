"""Floating-point operations of linear layers, counted: they say how much of a difference in time is arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


def linear_gflop(step: Callable[[], object]) -> float:
    """10^9 operations of the linear layers in one call of ``step``; attention is left out.

    A product costs 2 for each weight and row: once forward, and in the backward pass once for the gradient of its
    input and once for that of its weight, each where one is wanted.
    """
    counted = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal counted
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weights = module.weight[0].numel()  # of each number that comes out
            wanted = (args[0].requires_grad, module.weight.requires_grad) if output.requires_grad else ()
            counted += 2 * output.numel() * weights * (1 + sum(wanted))

    handle = register_module_forward_hook(count)
    try:
        step()
    finally:
        handle.remove()
    return counted / 1e9
