"""Products of float32 with frozen weights on CPUs, by oneDNN where MKL, which torch asks, takes slower instructions.

On processors of other makers than its own MKL takes AVX2, oneDNN whatever there is: with AVX-512 it is twice as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gitllm_plugin.common.device import has_slow_mkl

_FEWEST_ROWS, _FEWEST_WEIGHTS = 32, 2**16
"""Smaller products are as fast by MKL, to which oneDNN's preparations are a burden."""


def use_fast_products(model: nn.Module) -> None:
    """Let linear layers of a model multiply by the faster library, in place; a second time changes nothing.

    Layers are told apart at every call: what is trained, compiled, under autocast, small, on a GPU or not in float32 is
    left to torch, as is everything inside ``torch.backends.mkldnn.flags(enabled=False)``.
    """
    if not has_slow_mkl():
        return
    for module in model.modules():
        # Subclasses have a forward of their own.
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear


class FrozenLinear(nn.Linear):
    """torch's linear layer, but while its weight is frozen."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``input @ weight.T + bias``, float ``[..., out_features]``."""
        if not self._is_faster_by_onednn(input):
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]

    def _is_faster_by_onednn(self, states: Tensor) -> bool:
        weight, bias = self.weight, self.bias
        return (
            states.dtype == weight.dtype == torch.float32
            and weight.device.type == "cpu"
            # Others are spread over ranks, quantised or only pretend to be there.
            and type(weight) is nn.Parameter
            and states.numel() >= _FEWEST_ROWS * self.in_features
            and weight.numel() >= _FEWEST_WEIGHTS
            and not (torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)))
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


class _Product(torch.autograd.Function):
    """A linear layer whose input alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _multiply(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _multiply(gradients[0], weight.t(), None), None, None


def _multiply(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator that torch's compiler takes for the same reason; it reads plain and transposed weights as they are.
    return torch.ops.mkldnn._linear_pointwise(states.contiguous(), weight, bias, "none", [], "")
