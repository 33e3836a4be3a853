"""What a training step holds for its backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def held_for_backward(model: nn.Module, step: Callable[[], None]) -> int:
    """Count the bytes that autograd keeps in a step, weights not among them."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())
