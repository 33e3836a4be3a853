"""How the ranks of a run share its model, each a copy (DDP) or a piece (FSDP2), and what ends ranks that are stuck."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gitllm_plugin.common import ranks
from gitllm_plugin.config.run import Sharding
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import LayeredModel, offers

SHARDINGS: tuple[str, ...] = get_args(Sharding)
_WAYS = ("fused", "foreach", "capturable")  # in which torch's optimizers compute the same
EXIT_STUCK = 75  # EX_TEMPFAIL of sysexits.h, "try again later": neither an error (1, 2) nor a signal's (128 and more)
# What LAVIS's tasks call on a model besides `forward`: FSDP gathers the weights only for methods it is told of.
_METHODS = ("generate", "predict_answers", "predict_class", "predict", "compute_sim_matrix")


def share(model: nn.Module, device: torch.device, sharding: str) -> nn.Module:
    """Wrap a model for the ranks of this run; alone, it stays as it is.

    Args:
        model: not wrapped; for DDP it has to be on the device.
        device: this rank's.
        sharding: one of :data:`SHARDINGS`.

    Raises:
        ConfigError: ``sharding`` is not known, or asked for where there is no process group.
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
    # A batch without images leaves the projection unused, and DDP would wait for its gradient forever.
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=True)


def compile_blocks(model: nn.Module) -> None:
    """Let torch compile the model's layers, one after another, in place: layers alike are compiled once.

    A model that is no :class:`~gitllm_plugin.protocols.LayeredModel` is compiled as a whole.
    """
    for module in blocks_of(model) or [model]:
        module.compile()


def unwrap(model: nn.Module) -> nn.Module:
    """Give the model itself, whether it was wrapped or not."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def gradients_exchanged(model: nn.Module, exchange: bool) -> Iterator[None]:
    """Run a forward and backward pass in which the ranks do, or do not yet, average gradients."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(exchange)
        yield
    elif isinstance(model, DistributedDataParallel) and not exchange:
        with model.no_sync():
            yield
    else:
        yield


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Spread the parameters of ``model`` over the ranks, in place; each layer is whole only while it computes.

    The layers of a :class:`~gitllm_plugin.protocols.LayeredModel` are gathered one at a time, all else (embeddings,
    head, projection, image encoder) at once. The ranks start from rank 0's trained weights.

    Args:
        model: may still be on the CPU, as it may be too large for one device.
        device: where it computes.

    Raises:
        ConfigError: weights are in 4 bits.
    """
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ConfigError("run.sharding=fsdp cannot spread weights in 4 bits; leave model.load_in_4bit out")
    # Frozen weights are the same everywhere: every rank has read the same files.
    for parameter in model.parameters():
        if parameter.requires_grad:
            _copy_from_first_rank(parameter.data, device)
    # Before FSDP registers its own hook, which puts the weights away that this one needs.
    model.register_forward_hook(_give_all_a_gradient)
    mesh = init_device_mesh(device.type, (ranks.world_size(),))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
        # Before FSDP's own hook, which looks whether there is a gradient to wait for.
        block.register_forward_pre_hook(_give_input_a_gradient, prepend=True, with_kwargs=True)
    fully_shard(model, mesh=mesh)
    for name in _METHODS:
        if callable(getattr(model, name, None)):
            register_fsdp_forward_method(model, name)
    for module in model.modules():
        if hasattr(module, "generation_config"):
            # transformers then lets no rank end its generation before the others do.
            cast(Any, module)._is_fsdp_managed_module = True
    return model


def _copy_from_first_rank(value: Tensor, device: torch.device) -> None:
    # Over a copy on the device that the ranks exchange on: NCCL knows no CPU, where the model itself may still be.
    exchanged = value.to(device, copy=True)
    dist.broadcast(exchanged, src=0)
    value.copy_(exchanged)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """List the layers that a model says it runs one after another for every batch; none where it does not say."""
    return list(model.blocks()) if offers(model, LayeredModel) else []


def _give_all_a_gradient(module: nn.Module, args: Any, output: Any) -> Any:
    """Add zero times the weights that a batch may not have used (a text without an image) to the loss.

    All ranks must exchange the gradients of the same weights, else they wait for each other forever.
    """
    if isinstance(output, Mapping) and "loss" in output and torch.is_grad_enabled():
        whole = [p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        cast(Any, output)["loss"] = output["loss"] + sum(p.flatten()[0] * 0.0 for p in whole)
    return output


def _give_input_a_gradient(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the first tensor that a layer reads have a gradient, where none of them has (a text, no image, at layer 0).

    FSDP exchanges a layer's gradients once that of its input is known, or else behind all others: ranks with images in
    their batches and ranks without would exchange those of different layers with each other.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()]
    if torch.is_grad_enabled() and tensors and not any(value.requires_grad for value in tensors):
        tensors[0].requires_grad_()


def whole(value: Any) -> Any:
    """Give a tensor that may be spread over the ranks in one piece; all ranks must ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights by name, whole; those that are spread over the ranks on rank 0 alone."""
    gathered = {name: _gathered(value.detach()) for name, value in state.items()}
    return {name: value for name, value in gathered.items() if value is not None}


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give the optimizer's state as one process has it, with whole tensors; spread ones on rank 0 alone."""
    state = optimizer.state_dict()
    state["state"] = {key: {n: _gathered(v) for n, v in values.items()} for key, values in state["state"].items()}
    return state


def _gathered(value: Any) -> Any:
    if not isinstance(value, DTensor):
        return value
    # All ranks take part in the exchange, but only rank 0 writes: on the others the copy would fill memory for nothing.
    tensor = value.full_tensor()
    return tensor.cpu() if ranks.rank() == 0 else None


def spread_like(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spread whole tensors, by name, over the ranks as those in ``wanted`` are."""
    return {name: _spread(value, wanted.get(name)) for name, value in given.items()}


def _spread(value: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every rank has read the same file.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what :func:`whole_optimizer_state` gave, on any number of ranks.

    Raises:
        ValueError: the state is of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        key: {name: _spread(v, parameters[key]) if key < len(parameters) else v for name, v in values.items()}
        for key, values in state["state"].items()
    }
    # How it computes is this machine's affair: a state may come from a GPU to a CPU.
    ways = [{name: group[name] for name in _WAYS if name in group} for group in optimizer.param_groups]
    groups = [{**group, **way} for group, way in zip_longest(state["param_groups"], ways, fillvalue={})]
    optimizer.load_state_dict({**state, "state": spread, "param_groups": groups})


class Watchdog:
    """Ends this process when it stays at one place for too long. A context manager; alone, a run is not watched.

    It may be entered inside itself, and watches until it is left as often.

    Waiting for other ranks blocks the main thread for hours before torch gives up, and then without saying which
    rank the others waited for. Here every rank prints its own place at about the same time: the odd one is the
    culprit, and the trace of its threads is printed too.

    Args:
        minutes: how long one place may take, 0 for ever.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.place = "starting"
        self.since = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._entered = 0

    def __enter__(self) -> "Watchdog":
        """Begin to watch."""
        self._entered += 1
        if self._entered == 1 and self.seconds and ranks.is_distributed():
            self._ended.clear()
            self.at("starting")
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Watch no longer."""
        self._entered -= 1
        if self._entered == 0 and self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def at(self, place: str) -> None:
        """Note that the rank goes on, to this place; ``place`` completes "no progress at: ..."."""
        self.place, self.since = place, time.monotonic()

    def batches(self, loader: Any, what: str) -> "WatchedLoader":
        """Give a loader's batches, each noted as a place of ``what``, and the end as waiting for the others."""
        return WatchedLoader(loader, self, what)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self.since > self.seconds:
                self._give_up()

    def _give_up(self) -> None:
        rank, world = ranks.rank(), ranks.world_size()
        sys.stderr.write(
            f"error: rank {rank} of {world} has made no progress for {self.seconds / 60:g} minutes "
            f"(run.step_timeout_minutes) at: {self.place}. Each rank prints its own place; look for the one that is "
            "not waiting for the others. Checkpoints are whole: the run can be resumed.\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback()
        # Not sys.exit, which ends this thread alone, nor a clean end, which would wait for the stuck exchange.
        os._exit(EXIT_STUCK)


class WatchedLoader:
    """A loader that tells a watchdog how far it is; in all else the loader itself.

    Args:
        loader: gives batches.
        watchdog: is told.
        what: completes "no progress at: batch 3 of ...".
    """

    def __init__(self, loader: Any, watchdog: Watchdog, what: str):
        self.loader = loader
        self.watchdog = watchdog
        self.what = what

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        """Give the loader's batches."""
        self.watchdog.at(f"batch 1 of {self.what}")
        for number, batch in enumerate(self.loader, start=2):
            yield batch
            self.watchdog.at(f"batch {number} of {self.what}")
        self.watchdog.at(f"the results of {self.what}, which all ranks gather")
