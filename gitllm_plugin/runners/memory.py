"""How much memory a training step takes on each rank, computed before a run without weights, device or other ranks.

A step is simulated (:mod:`gitllm_plugin.common.simulated_memory`) as the run would make it: the model's own forward
pass, the gradients, their clipping, AdamW. Three things make it quick, none of them an estimate:

- all layers are alike, so that a few tell every depth: at each place of a step (forward or backward, in the first
  layers, in the last ones, outside of them) a layer more is what it holds by itself (weights, moments), and what is
  held more after a middle layer than before it (activations, gradients), for each such layer that was passed;
- FSDP2 divides some of what is held by the number of ranks and leaves the rest, so that two numbers of ranks tell the
  others;
- a rank of DDP holds what one process holds, and its gradients once more, in the buckets that are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gitllm_plugin.common.simulated_memory import Place, Simulation
from gitllm_plugin.errors import ConfigError, first_line
from gitllm_plugin.protocols import CheckpointedModel, offers
from gitllm_plugin.runners.optimizer import build_optimizer
from gitllm_plugin.runners.parallel import blocks_of, shard
from gitllm_plugin.tables import Block, Table

Switch = bool | None
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
_FEW, _MORE = 2, 8
"""The numbers of ranks that FSDP2 is simulated with."""
_MARGIN = 2
"""So many of the first and of the last layers are places of their own."""
_LAYERS = 2 * _MARGIN + 1
"""So many layers are simulated."""
_ADAM_STATES = 2  # the two moments of each trained number, in its own format
_NAMES = ("DDP", "FSDP2"), ("DDP, checkpointing", "FSDP2, checkpointing")
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


def ddp_peaks(step: Step, checkpointing: Sequence[Switch] = (None,), whole: bool = False) -> list[dict[int, int]]:
    """Compute the most bytes that each of so many ranks holds at once in a step, each with the whole model.

    Args:
        step: what is computed.
        checkpointing: whether layers are computed again in the backward pass; None: as the model is. There are as many
            results; to ask for all at once, without it first, is quicker.
        whole: whether to simulate every layer, which takes minutes for large models and gives the same.

    Raises:
        ConfigError: the model cannot be checkpointed, or its program cannot be simulated; the message says why.
    """
    buckets = sum(p.numel() * p.element_size() for p in step.model.parameters() if p.requires_grad)
    alone = [max(peaks.values()) for peaks in _peaks(step, checkpointing, 0, whole)]
    return [{ranks: one + (buckets if ranks > 1 else 0) for ranks in RANKS} for one in alone]


def fsdp_peaks(step: Step, checkpointing: Sequence[Switch] = (None,), whole: bool = False) -> list[dict[int, int]]:
    """Compute the same for ranks that FSDP2 spreads the model over; see :func:`ddp_peaks`."""
    # One rank gathers nothing: its weights are used where they are.
    found = zip(*(_peaks(step, checkpointing, ranks, whole) for ranks in (1, _FEW, _MORE)), strict=True)
    return [
        {ranks: max((one if ranks == 1 else _at_ranks(few, more, ranks)).values()) for ranks in RANKS}
        for one, few, more in found
    ]


def describe_peaks(step: Step, sharding: str) -> list[Block]:
    """Tabulate the peaks of a step for all numbers of ranks, with and without checkpointing, and say what is in them.

    Args:
        step: what is computed.
        sharding: of the run; says what the sentence behind the table is about.
    """
    switches: list[Switch] = [False, True] if offers(step.model, CheckpointedModel) else [None]
    rows: list[tuple[str, ...]] = []
    faults: list[Block] = []
    while switches and not rows:
        try:
            for names, *found in zip(_NAMES, ddp_peaks(step, switches), fsdp_peaks(step, switches), strict=False):
                rows += [(name, *map(_gigabytes, peaks.values())) for name, peaks in zip(names, found, strict=True)]
        except ConfigError as error:
            if str(error) not in faults:
                faults.append(str(error))
            switches.pop()
    blocks = faults
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


def _peaks(step: Step, checkpointing: Sequence[Switch], ranks: int, whole: bool) -> list[Mapping[Place, int]]:
    """Compute the peak at each place of a step, for each switch.

    Args:
        step, checkpointing, whole: as for :func:`ddp_peaks`.
        ranks: that the model is spread over; 0: it is not.
    """
    depth = None if whole else _depth(step.model)
    simulation = Simulation()
    model = _copy_of(step.model, depth is not None, simulation)
    _skip_frozen(model)
    with _group(ranks), simulation.running():
        try:
            steps = _SimulatedSteps(step, model, ranks, simulation)
            found = [steps.peaks(on, depth) for on in checkpointing]
        except RuntimeError as error:
            raise ConfigError(
                f"The memory of a step cannot be computed: {type(model).__name__} asks for what only real numbers tell "
                f"({first_line(error)})."
            ) from error
    return found


def _copy_of(model: nn.Module, cut: bool, simulation: Simulation) -> nn.Module:
    """Copy a model for a simulation, ``cut`` down to few layers or as it is."""
    layers = _list_of(model, blocks_of(model)) or () if cut else ()
    # What makes tokens is large, and knows nothing of weights.
    copied = simulation.copy_of(model, [getattr(model, "text_encoder", None), *layers[_LAYERS:]]).train()
    if cut and (copied_layers := _list_of(copied, blocks_of(copied))) is not None:
        del copied_layers[_LAYERS:]
    return copied


def _depth(model: nn.Module) -> int | None:
    """Count the model's layers, where all are alike and more than are simulated; else None."""
    blocks = blocks_of(model)
    kinds = {tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in b.named_parameters()) for b in blocks}
    lists = [m for block in blocks for m in block.modules() if isinstance(m, nn.ModuleList)]
    is_cut = len(blocks) > _LAYERS and len(kinds) == 1 and _list_of(model, blocks) is not None
    # The last layer is found as that of the longest list.
    return len(blocks) if is_cut and all(len(found) < _LAYERS for found in lists) else None


def _list_of(model: nn.Module, blocks: Sequence[nn.Module]) -> nn.ModuleList | None:
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if list(found) == list(blocks)), None)


class _SimulatedSteps:
    """A model and its optimizer in a simulation, as a run has them from the second step on.

    Args:
        step: what is computed.
        model: a copy that belongs to the simulation; changed in place.
        ranks: that it is spread over; 0: it is not.
        simulation: is running.
    """

    def __init__(self, step: Step, model: nn.Module, ranks: int, simulation: Simulation):
        self.step, self.model, self.simulation = step, model, simulation
        self.blocks = blocks_of(model)  # before they are spread, which changes their class
        if ranks:
            shard(model, torch.device("cpu"))
        self.optimizer = build_optimizer(model, lr=1.0, weight_decay=0.0, beta2=0.999)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        # From the second step on the moments are there in the forward pass too.
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.samples = {
            key: simulation.fake(value) if isinstance(value, Tensor) else value for key, value in step.samples.items()
        }
        self.way = _Way(self.blocks, simulation)

    def peaks(self, checkpointing: Switch, depth: int | None) -> Mapping[Place, int]:
        """Simulate a step and give the most that is held at each place.

        Args:
            checkpointing: as for :func:`ddp_peaks`.
            depth: how many layers the model would have; None: those that it has.
        """
        if checkpointing is not None:
            _use_checkpointing(self.model, checkpointing)
        self.simulation.begin()
        self.way.begin()
        for turn in range(min(self.step.batches, 2)):
            self.way.at(turn, "forward", "before")
            with self.step.autocast():
                loss = self.step.loss(self.model, dict(self.samples))
            self.way.at(turn, "backward", "after")
            loss.backward()
            del loss
        self.way.at(0, "step", "")
        if self.step.clipped:
            nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        peaks = self.simulation.peaks
        if depth is not None:
            layer = self.blocks[_MARGIN]
            own = [*layer.parameters(), *layer.buffers()]
            own += [v for p in own for v in self.optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
            kept = _bytes_of(own)
            gradients = _bytes_of(p.grad for p in layer.parameters() if p.grad is not None)
            # The middle is left out: what is held there is between what its ends hold.
            peaks = {
                place: peak + (depth - _LAYERS) * (kept + self.way.grown(place, gradients))
                for place, peak in peaks.items()
                if place[2] != "middle"
            }
        self.optimizer.zero_grad(set_to_none=True)
        return peaks


def _bytes_of(values: Iterable[Tensor]) -> int:
    """Count the bytes of this rank's part of tensors; what shares memory once."""
    here = (value.to_local() if isinstance(value, DTensor) else value for value in values)
    storages = {storage._cdata: storage for storage in (value.untyped_storage() for value in here)}
    return sum(storage.nbytes() for storage in storages.values())


class _Way:
    """Where a step is: in which pass, forward or backward, and in which of the layers; tells the simulation.

    It notes by how many bytes what is held grows in the middle layer.
    """

    def __init__(self, blocks: Sequence[nn.Module], simulation: Simulation):
        self.simulation = simulation
        self.count = len(blocks)
        self.begin()
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._entering, number), with_kwargs=True)
        if blocks:
            blocks[-1].register_forward_hook(self._leaving_last)

    def begin(self) -> None:
        """Begin a step."""
        self._changes: dict[tuple[int, str], int] = {}
        self._place: tuple[int, str, Any] = (0, "", "")
        self._held = 0

    def at(self, turn: int, direction: str, name: str | int) -> None:
        """Note that the step is at another place now, or once more at this one.

        Args:
            turn: which of the batches whose gradients are added up it computes.
            direction: "forward", "backward" or "step".
            name: of a layer, or "before" or "after" all of them.
        """
        held = self.simulation.held
        if self._place[2] == "middle":
            way = self._place[:2]
            self._changes[way] = self._changes.get(way, 0) + held - self._held
        self._held = held
        self._place = self.simulation.place = turn, direction, name

    def grown(self, place: Place, gradients: int) -> int:
        """Tell how many bytes more a passed middle layer leaves at a place.

        Args:
            place: as the simulation knows it.
            gradients: the bytes of a middle layer's gradients, which are all that it leaves at the end of a pass.
        """
        turn, direction, name = place
        if direction == "forward":
            is_passed = name in ("after", *range(-_MARGIN, 0))
            return (gradients if turn else 0) + (self._changes.get((turn, direction), 0) if is_passed else 0)
        # What autocast keeps is freed between the passes: counted from the end, not from the beginning.
        is_coming = direction == "backward" and name in ("after", *range(-_MARGIN, 0))
        return gradients - (self._changes.get((turn, direction), 0) if is_coming else 0)

    def _name_of(self, number: int) -> str | int:
        from_end = number - self.count
        return number if number < _MARGIN else from_end if from_end >= -_MARGIN else "middle"

    def _entering(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.at(*self._place[:2], self._name_of(number))
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if hidden.requires_grad:  # its gradient comes when the layer is done
            hidden.register_hook(lambda _: self.at(*self._place[:2], self._name_of(number - 1) if number else "before"))

    def _leaving_last(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        # A layer that is computed again in the backward pass is left in its middle.
        if self._place[1] == "forward":
            self.at(*self._place[:2], "after")
            if hidden.requires_grad:
                hidden.register_hook(lambda _: self.at(*self._place[:2], self._name_of(self.count - 1)))


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
