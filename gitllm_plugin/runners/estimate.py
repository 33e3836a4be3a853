"""What a training needs of memory and time: weights counted, activations and seconds of a step measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gitllm_plugin.runners.length import RunLength

_ADAM_STATES = 2  # the two moments of each trained number, in its own format


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, without what torch and the libraries need for themselves.

    Attributes:
        frozen: Weights that are not trained.
        trained: Weights that are.
        gradients: Of the trained weights.
        optimizer: AdamW's moments.
        activations: What the forward pass of one batch keeps for the backward pass.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        lines = [f"  {name:<12}{value / 2**20:>12,.1f} MiB" for name, value in vars(self).items()]
        return "\n".join([*lines, f"  {'together':<12}{self.total / 2**20:>12,.1f} MiB"])


def estimate_memory(model: nn.Module, activations: int) -> MemoryEstimate:
    """Count the weights of `model`, and what training them with AdamW adds."""
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(frozen, trained, trained, _ADAM_STATES * trained, activations)


def measure_step(model: nn.Module, loss_of_batch: Callable[[], Tensor]) -> tuple[int, float]:
    """Bytes that a batch's forward pass keeps, and the seconds of forward and backward pass.

    The batch is computed twice: the first time memory is counted, and whatever is made once is made; the second
    time the clock runs. No weight changes.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of_batch().backward()
    began = time.perf_counter()
    loss_of_batch().backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return sum(kept.values()), seconds


def describe_time(length: RunLength, seconds_per_batch: float) -> str:
    """How long the run is, and how long it takes at the measured pace."""
    total = length.total_iters * seconds_per_batch
    hours, rest = divmod(int(total), 3600)
    return (
        f"{length.max_epoch} epochs of {length.iters_per_epoch} batches, {length.total_iters} batches in all, "
        f"{length.steps_until(length.total_iters)} optimizer steps.\n"
        f"  a batch takes {seconds_per_batch:.3f} s here, forward and backward: all of them "
        f"{hours}:{rest // 60:02d}:{rest % 60:02d}, without reading data, optimizer and evaluations"
    )
