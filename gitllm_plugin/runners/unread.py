"""Sums of a step, and steps whose numbers are still on the device: they are read together, so that it need not wait."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import num_samples
from gitllm_plugin.protocols import weight_of_loss
from gitllm_plugin.runners.records import StepRecord


@dataclass
class Window:
    """Sums over the batches of one optimizer step; after :meth:`reduce`, over the ranks too.

    Attributes:
        losses: the batches' mean losses, scalars that stay on the device.
        loss_sum: the sum of these, each times its weight, float64 on the device.
        logged: the same sums of further means of the task's, by name.
        weight: what the losses were divided by.
        tokens, samples: how many there were.
        stop, save, missing: how many ranks are to stop, to save, or have no more batches.
        ids: names of the examples of each batch.
    """

    losses: list[Tensor] = field(default_factory=list)
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    logged: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    tokens: float = 0.0
    samples: float = 0.0
    stop: float = 0.0
    save: float = 0.0
    missing: float = 0.0
    ids: list[list[str]] = field(default_factory=list)

    def add(self, outputs: Mapping[str, Any], samples: dict[str, Any]) -> None:
        """Count a batch by what a :class:`~gitllm_plugin.protocols.CountingTask` gave."""
        loss, weight = outputs["loss"].detach().double(), weight_of_loss(outputs)
        self.losses.append(loss)
        self.loss_sum = loss * weight + self.loss_sum
        for name, value in outputs.get("logged", {}).items():
            self.logged[name] = value.detach().double() * weight + self.logged.get(name, 0.0)
        self.weight += weight
        self.tokens += int(outputs["num_supervised_tokens"])
        self.samples += num_samples(samples)
        self.ids.append([str(name) for name in samples.get("instance_id", [])])

    def reduce(self, device: torch.device) -> None:
        """Sum over the ranks; what the host knows on the host, the loss on the device."""
        names = ("weight", "tokens", "samples", "stop", "save", "missing")
        sums = ranks.sum_over_ranks([getattr(self, name) for name in names], device)
        for name, value in zip(names, sums, strict=True):
            setattr(self, name, value)
        self.loss_sum = ranks.add_over_ranks(self.loss_sum)
        self.logged = {name: ranks.add_over_ranks(value) for name, value in self.logged.items()}


@dataclass(frozen=True)
class Step:
    """A step whose loss and gradient norm were not read yet.

    Attributes:
        record: all else about it.
        epoch_iter: iterations of its epoch before it.
        numbers: float64 on the device: the sum of the losses, the gradient's norm, the sums of what else is logged, and
            the loss of each batch.
        logged: the names of what else is logged.
        weight: what the sum of the losses is divided by.
        ids: names of the examples of each batch, of this rank.
    """

    record: StepRecord
    epoch_iter: int
    numbers: Tensor
    weight: float
    logged: list[str]
    ids: list[list[str]]


@dataclass(frozen=True)
class ReadStep:
    """A step whose numbers are known.

    Attributes:
        record: with loss and norm, where they are finite.
        epoch_iter: see :class:`Step`.
        loss, grad_norm: finite or not.
        ids: of the examples that may be at fault where one of them is not finite.
    """

    record: StepRecord
    epoch_iter: int
    loss: float
    grad_norm: float
    ids: list[str]


def step_of(window: Window, grad_norm: Tensor, record: StepRecord, epoch_iter: int) -> Step:
    """Put a step aside, its numbers side by side."""
    numbers = torch.stack([window.loss_sum, grad_norm.double(), *window.logged.values(), *window.losses])
    return Step(record, epoch_iter, numbers, window.weight, list(window.logged), window.ids)


def read_steps(steps: list[Step]) -> list[ReadStep]:
    """Read the numbers of some steps, in one transfer, for which the device is waited for."""
    numbers = iter(torch.cat([step.numbers for step in steps]).tolist()) if steps else iter(())
    return [_read(step, [next(numbers) for _ in range(step.numbers.numel())]) for step in steps]


def _read(step: Step, numbers: list[float]) -> ReadStep:
    loss_sum, grad_norm, *losses = numbers
    logged = {name: losses.pop(0) / (step.weight or 1.0) for name in step.logged}
    loss = loss_sum / (step.weight or 1.0)
    bad = [ids for ids, value in zip(step.ids, losses, strict=True) if math.isfinite(loss) or not math.isfinite(value)]
    record = replace(
        step.record,
        loss=loss if math.isfinite(loss) else None,
        grad_norm=grad_norm if math.isfinite(grad_norm) else None,
        logged={name: value if math.isfinite(value) else None for name, value in logged.items()},
    )
    return ReadStep(record, step.epoch_iter, loss, grad_norm, sum(bad, []))
