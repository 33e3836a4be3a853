"""A model whose weights are spread over the ranks (FSDP2), and its state as if they were not."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from gitllm_plugin.common import ranks
from gitllm_plugin.errors import ConfigError

# What LAVIS's tasks call on a model besides `forward`.
_METHODS = ("generate", "predict_answers", "predict_class", "predict", "compute_sim_matrix")


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Spread the parameters of `model` over the ranks, in place; each layer is whole only while it computes.

    A model with `blocks()` says which layers it runs for every batch; these are gathered one at a time, all else
    (embeddings, head, projection, image encoder) at once. The ranks start from rank 0's trained weights.

    Raises:
        ConfigError: Weights in 4 bits.
    """
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ConfigError("run.sharding=fsdp cannot spread weights in 4 bits; leave model.load_in_4bit out")
    for parameter in model.parameters():
        if parameter.requires_grad:
            _copy_from_first_rank(parameter.data, device)
    model.register_forward_hook(_give_all_a_gradient)  # before FSDP's own, which puts the weights away
    mesh = init_device_mesh(device.type, (ranks.world_size(),))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in _METHODS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    for module in model.modules():
        if hasattr(module, "generation_config"):
            # transformers then lets no rank end its generation before the others do.
            cast(Any, module)._is_fsdp_managed_module = True
    return model


def _copy_from_first_rank(value: Tensor, device: torch.device) -> None:
    """Over a copy on the device that the ranks exchange on; the model itself may still be on the CPU."""
    exchanged = value.to(device, copy=True)
    dist.broadcast(exchanged, src=0)
    value.copy_(exchanged)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a model says it runs one after another for every batch."""
    return list(cast(Any, model).blocks()) if hasattr(model, "blocks") else []


def _give_all_a_gradient(module: nn.Module, args: Any, output: Any) -> Any:
    """Add zero times the weights that a batch may not have used (a text without an image) to the loss.

    All ranks must exchange the gradients of the same weights, else they wait for each other forever.
    """
    if isinstance(output, Mapping) and "loss" in output and torch.is_grad_enabled():
        whole = [p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        cast(Any, output)["loss"] = output["loss"] + sum(p.flatten()[0] * 0.0 for p in whole)
    return output


def whole(value: Any) -> Any:
    """A tensor that may be spread over the ranks, as it is; all ranks must ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name, whole; those that are spread over the ranks on rank 0 alone."""
    gathered = {name: _gathered(value.detach()) for name, value in state.items()}
    return {name: value for name, value in gathered.items() if value is not None}


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors, the same as that of one process; spread ones on rank 0 alone."""
    state = optimizer.state_dict()
    state["state"] = {key: {n: _gathered(v) for n, v in values.items()} for key, values in state["state"].items()}
    return state


def _gathered(value: Any) -> Any:
    """On rank 0 on the CPU if it is spread; the other ranks take part and get nothing."""
    if not isinstance(value, DTensor):
        return value
    tensor = value.full_tensor()
    return tensor.cpu() if ranks.rank() == 0 else None


def spread_like(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name, each spread over the ranks as `wanted` is where that is."""
    return {name: _spread(value, wanted.get(name)) for name, value in given.items()}


def _spread(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every rank has read the same file.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole_optimizer_state` gave, on any number of ranks.

    Raises:
        ValueError: It is of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        key: {name: _spread(v, parameters[key]) if key < len(parameters) else v for name, v in values.items()}
        for key, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})
