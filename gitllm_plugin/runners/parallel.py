"""How the ranks of a run share its model: each has a copy (DDP), or each has a part (FSDP2)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from gitllm_plugin.common import ranks
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.sharding import blocks_of, shard

SHARDINGS = ("none", "fsdp")


def share(model: nn.Module, device: torch.device, sharding: str) -> nn.Module:
    """Wrap a model for the ranks of this run; alone, it stays as it is.

    A batch without images leaves the projection unused, hence `find_unused_parameters`.

    Raises:
        ConfigError: `sharding` is not known, or asked for where there is no process group.
    """
    if sharding not in SHARDINGS:
        raise ConfigError(f"run.sharding is {sharding!r}; it may be one of {', '.join(SHARDINGS)}")
    if sharding == "fsdp":
        if not ranks.is_distributed():
            raise ConfigError(
                "run.sharding=fsdp spreads a model over ranks: start the run with torchrun, or leave it out"
            )
        return shard(model, device)
    if not ranks.is_distributed() or not any(p.requires_grad for p in model.parameters()):
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=True)


def compile_blocks(model: nn.Module) -> None:
    """Let torch compile the model's layers, one after another, in place: layers alike are compiled once.

    A model without `blocks()` is compiled as a whole.
    """
    for module in blocks_of(model) or [model]:
        module.compile()


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, whether it was wrapped or not."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def gradients_exchanged(model: nn.Module, exchange: bool) -> Iterator[None]:
    """The context of a forward and backward pass in which the ranks do, or do not yet, average gradients."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(exchange)
        yield
    elif isinstance(model, DistributedDataParallel) and not exchange:
        with model.no_sync():
            yield
    else:
        yield
