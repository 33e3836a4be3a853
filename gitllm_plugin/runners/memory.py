"""How much memory a training step takes on each rank, computed before a run without weights, device or other ranks.

A step is simulated (:mod:`gitllm_plugin.common.simulated_memory`) as the run would make it: the model's own forward
pass, the gradients, their clipping, AdamW. Three things make it quick, none of them an estimate:

- all layers are alike, so that two depths tell every depth: at each place of a step (forward or backward, in the first
  layers, in the last ones, outside of them) what is held grows with the number of layers by the same bytes each;
- FSDP2 divides some of what is held by the number of ranks and leaves the rest, so that two numbers of ranks tell the
  others;
- a rank of DDP holds what one process holds, and its gradients once more, in the buckets that are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gitllm_plugin.common.simulated_memory import Place, Simulation
from gitllm_plugin.errors import ConfigError, first_line
from gitllm_plugin.protocols import CheckpointedModel, offers
from gitllm_plugin.runners.optimizer import build_optimizer
from gitllm_plugin.runners.parallel import blocks_of, shard
from gitllm_plugin.tables import Block, Table

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
_FEW, _MORE = 2, 8
"""The numbers of ranks that FSDP2 is simulated with."""
_MARGIN = 2
"""So many of the first and of the last layers are places of their own."""
_DEPTHS = (4, 5)
"""The numbers of layers that are simulated, of at least two margins."""
_ADAM_STATES = 2  # the two moments of each trained number, in its own format
_NOT_COUNTED = (
    "1 GB is 1e9 bytes. Computed for the batch above, as PyTorch would allocate it, without reading a weight. Not "
    "counted: what CUDA and its libraries take in each process (about 0.5 to 1 GB), NCCL's buffers, the workspace of "
    "kernels, memory that is free and in pieces, what longer texts take in other batches, and memory of the machine "
    "beside the GPU. Leave a tenth free."
)


@dataclass(frozen=True)
class Step:
    """What a training step is, as far as its memory goes.

    Attributes:
        model: with real weights or without numbers; it is copied.
        samples: a batch.
        loss: computes the loss of a batch, ``loss(model, samples)``.
        autocast: the context of the forward pass.
        batches: how many add up their gradients.
        clipped: whether the gradient's norm is bounded.
    """

    model: nn.Module
    samples: Mapping[str, Any]
    loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    autocast: Callable[[], AbstractContextManager[Any]]
    batches: int = 1
    clipped: bool = True


def ddp_peaks(step: Step, checkpointing: bool | None = None, whole: bool = False) -> dict[int, int]:
    """Compute the most bytes that each of so many ranks holds at once in a step, each with the whole model.

    Args:
        step: what is computed.
        checkpointing: whether layers are computed again in the backward pass; None: as the model is.
        whole: whether to simulate every layer, which takes minutes for large models and gives the same.

    Raises:
        ConfigError: the model cannot be checkpointed, or its program cannot be simulated; the message says why.
    """
    one = max(_peaks(step, checkpointing, 0, whole).values())
    buckets = sum(p.numel() * p.element_size() for p in step.model.parameters() if p.requires_grad)
    return {ranks: one + (buckets if ranks > 1 else 0) for ranks in RANKS}


def fsdp_peaks(step: Step, checkpointing: bool | None = None, whole: bool = False) -> dict[int, int]:
    """Compute the same for ranks that FSDP2 spreads the model over; see :func:`ddp_peaks`."""
    # One rank gathers nothing: its weights are used where they are.
    single, few, more = (_peaks(step, checkpointing, ranks, whole) for ranks in (1, _FEW, _MORE))
    return {ranks: max((single if ranks == 1 else _at_ranks(few, more, ranks)).values()) for ranks in RANKS}


def describe_peaks(step: Step, sharding: str) -> list[Block]:
    """Tabulate the peaks of a step for all numbers of ranks, with and without checkpointing, and say what is in them.

    Args:
        step: what is computed.
        sharding: of the run; says what the sentence behind the table is about.
    """
    rows, faults = [], []
    for checkpointing, name in ((False, ""), (True, ", checkpointing")):
        try:
            switch = checkpointing if offers(step.model, CheckpointedModel) else None
            peaks = {"DDP": ddp_peaks(step, switch), "FSDP2": fsdp_peaks(step, switch)}
        except ConfigError as error:
            faults.append(str(error))
            continue
        rows += [(f"{way}{name}", *map(_gigabytes, found.values())) for way, found in peaks.items()]
        if not offers(step.model, CheckpointedModel):
            break
    blocks: list[Block] = [*faults]
    if rows:
        header = ("GB on each of so many ranks", *map(str, RANKS))
        blocks.append(Table(header, rows, numbers=range(1, len(header))))
    return [*blocks, _parts_of(step.model, sharding), _NOT_COUNTED]


def _parts_of(model: nn.Module, sharding: str) -> str:
    frozen, trained = (
        sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad is wanted)
        for wanted in (False, True)
    )
    divided = ", each divided by the number of ranks" if sharding == "fsdp" else ""
    return (
        f"In it, for run.sharding={sharding}: frozen weights {_gigabytes(frozen)}, trained ones {_gigabytes(trained)}, "
        f"their gradients {_gigabytes(trained)}, AdamW's moments {_gigabytes(_ADAM_STATES * trained)}{divided}. The "
        "rest is activations, with DDP the buckets that gradients are exchanged in, and with FSDP2 what is gathered."
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}" if size >= 1e8 else f"{size / 1e9:.4f}"


def _at_ranks(few: Mapping[Place, int], more: Mapping[Place, int], ranks: int) -> dict[Place, int]:
    """Compute the peak at each place for another number of ranks, which a part of what is held is divided by."""
    share = (1 / ranks - 1 / _MORE) / (1 / _FEW - 1 / _MORE)
    return {place: round(more[place] + (few[place] - more[place]) * share) for place in few}


def _peaks(step: Step, checkpointing: bool | None, ranks: int, whole: bool) -> Mapping[Place, int]:
    """Compute the peak at each place of a step; ``ranks`` is how many the model is spread over, 0: it is not."""
    depth = _depth(step.model)
    if whole or depth is None:
        return _simulated_peaks(step, checkpointing, ranks, None)
    low, high = _DEPTHS
    fewer, more = (_simulated_peaks(step, checkpointing, ranks, layers) for layers in _DEPTHS)
    # The middle is left out: what is held there is between what its ends hold.
    return {
        place: fewer[place] + (more[place] - fewer[place]) * (depth - low) // (high - low)
        for place in fewer
        if place[1] != "middle"
    }


def _depth(model: nn.Module) -> int | None:
    """Count the model's layers, where all are alike and more than are simulated; else None."""
    blocks = blocks_of(model)
    kinds = {tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in b.named_parameters()) for b in blocks}
    lists = [m for block in blocks for m in block.modules() if isinstance(m, nn.ModuleList)]
    is_cut = len(blocks) > max(_DEPTHS) and len(kinds) == 1 and _list_of(model, blocks) is not None
    # The last layer is found as that of the longest list.
    return len(blocks) if is_cut and all(len(found) < min(_DEPTHS) for found in lists) else None


def _list_of(model: nn.Module, blocks: Sequence[nn.Module]) -> nn.ModuleList | None:
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if list(found) == list(blocks)), None)


def _simulated_peaks(step: Step, checkpointing: bool | None, ranks: int, depth: int | None) -> Mapping[Place, int]:
    """Simulate a step and give the most that is held at each place.

    Args:
        step, checkpointing: as for :func:`ddp_peaks`.
        ranks: that the model is spread over; 0: it is not.
        depth: how many layers the model has; None: all of its own.
    """
    simulation = Simulation()
    # What makes tokens is large, and knows nothing of weights.
    model = simulation.copy_of(step.model, [getattr(step.model, "text_encoder", None)])
    if depth is not None and (layers := _list_of(model, blocks_of(model))) is not None:
        del layers[depth:]
    model.train()
    _skip_frozen(model)
    if checkpointing is not None:
        _use_checkpointing(model, checkpointing)
    with _group(ranks), simulation.running():
        try:
            _simulate(step, model, ranks, simulation)
        except RuntimeError as error:
            raise ConfigError(
                f"The memory of a step cannot be computed: {type(model).__name__} asks for what only real numbers tell "
                f"({first_line(error)})."
            ) from error
    return simulation.peaks


def _simulate(step: Step, model: nn.Module, ranks: int, simulation: Simulation) -> None:
    blocks = blocks_of(model)  # before they are spread, which changes their class
    if ranks:
        shard(model, torch.device("cpu"))
    optimizer = build_optimizer(model, lr=1.0, weight_decay=0.0, beta2=0.999)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # From the second step on the moments are there in the forward pass too.
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    samples = {
        key: simulation.fake(value) if isinstance(value, Tensor) else value for key, value in step.samples.items()
    }
    _tell_places(blocks, simulation)
    simulation.begin()
    for _ in range(min(step.batches, 2)):
        simulation.place = "forward", "before"
        with step.autocast():
            loss = step.loss(model, dict(samples))
        simulation.place = "backward", "after"
        loss.backward()
        del loss
    simulation.place = "step", ""
    if step.clipped:
        nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


def _tell_places(blocks: Sequence[nn.Module], simulation: Simulation) -> None:
    """Let a simulation know in which of the layers it is, in the backward pass too."""

    def name_of(number: int) -> Any:
        from_end = number - len(blocks)
        return number if number < _MARGIN else from_end if from_end >= -_MARGIN else "middle"

    def at(name: Any) -> None:
        simulation.place = simulation.place[0], name

    def entering(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        at(name_of(number))
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if hidden.requires_grad:  # its gradient comes when the layer is done
            hidden.register_hook(lambda _: at(name_of(number - 1) if number else "before"))

    def leaving_last(output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        # A layer that is computed again in the backward pass is left in its middle.
        if simulation.place[0] == "forward":
            at("after")
            if hidden.requires_grad:
                hidden.register_hook(lambda _: at(name_of(len(blocks) - 1)))

    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(
            lambda _, args, kwargs, number=number: entering(number, args, kwargs), with_kwargs=True
        )
    if blocks:
        blocks[-1].register_forward_hook(lambda module, args, output: leaving_last(output))


def _skip_frozen(model: nn.Module) -> None:
    """Let layers of frozen stacks (an image encoder's) not be computed again and again, in place.

    What keeps nothing for a backward pass takes the same memory however often it is done; weights are all held.
    """
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList) and not any(p.requires_grad for p in stack.parameters()):
            given: list[Any] = []
            for layer in stack:
                layer.forward = partial(_computed_once, layer.forward, given, layer is stack[0])


def _computed_once(
    forward: Callable[..., Any], given: list[Any], is_first: bool, hidden: Any, *args: Any, **kwargs: Any
) -> Any:
    """Give what the first of the layers gave, where nothing is kept."""
    if is_first or torch.is_grad_enabled():
        given[:] = [forward(hidden, *args, **kwargs)]
    return given[0]


def _use_checkpointing(model: nn.Module, on: bool) -> None:
    if not offers(model, CheckpointedModel):
        raise ConfigError(f"{type(model).__name__} does not say how its layers are computed again")
    model.use_checkpointing(on)


@contextmanager
def _group(ranks: int) -> Iterator[None]:
    """Let this process be the first of so many ranks, which are not there and whom nothing is sent to; 0: of none."""
    if not ranks:
        yield
        return
    from torch.distributed._tools import fake_collectives  # noqa: F401  (collectives of fake tensors)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
