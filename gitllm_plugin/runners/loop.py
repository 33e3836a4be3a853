"""The training loop: forward, backward, and one optimizer step per window of accumulated batches."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gitllm_plugin.errors import DataError, GitLLMError
from gitllm_plugin.runners import collectives
from gitllm_plugin.runners.loaders import move_to_device, num_samples


class NonFiniteLossError(GitLLMError):
    """The loss or its gradient became infinite or not a number; the weights were not changed by it."""


@dataclass
class Position:
    """Where a run stands; the next iteration is `epoch_iter` of `epoch`.

    Attributes:
        epoch: Counted from 0.
        epoch_iter: Iterations (batches) of this epoch that are done.
        iters: Iterations of the whole run that are done.
        steps: Optimizer steps of the whole run that are done.
    """

    epoch: int = 0
    epoch_iter: int = 0
    iters: int = 0
    steps: int = 0


@dataclass
class StepRecord:
    """What one optimizer step did, over all ranks; a line of `metrics.jsonl`.

    Attributes:
        step: Counted from 0 over the run.
        epoch: Counted from 0.
        iter: Iterations done since the start of the run, this step's included.
        loss: Mean over the step's supervised tokens (over its batches where the task counts no tokens).
        lr: Learning rate of the first parameter group.
        grad_norm: Norm of the gradient before clipping.
        samples: Number of examples.
        tokens: Number of supervised tokens, or of batches where the task counts no tokens.
        seconds: Time from the end of the step before.
    """

    step: int
    epoch: int
    iter: int
    loss: float
    lr: float
    grad_norm: float
    samples: int
    tokens: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self)


@dataclass
class _Window:
    """Sums over the batches of one optimizer step; after `reduce`, over the ranks too."""

    loss_sum: float = 0.0
    weight: float = 0.0
    samples: float = 0.0
    stop: float = 0.0

    def reduce(self, device: torch.device) -> None:
        sums = collectives.sum_over_ranks([self.loss_sum, self.weight, self.samples, self.stop], device)
        self.loss_sum, self.weight, self.samples, self.stop = sums

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.weight, 1.0)


class TrainingLoop:
    """Runs iterations of a task on a model.

    The loss that is minimised is the mean over all supervised tokens of the step, whatever batch or rank
    they are in: every batch's mean is weighted by its tokens, and the summed gradient is divided by their
    number once, before clipping. Where a task counts no tokens each batch weighs the same.

    Args:
        task: LAVIS's task. `train_outputs(model, samples)`, giving `loss` and `num_supervised_tokens`, is
            used where it exists; `train_step(model, samples)`, giving the loss, elsewhere.
        model: In distributed runs wrapped in DistributedDataParallel.
        optimizer: Its groups hold every trainable parameter.
        schedule: `set_for(step, epoch, epoch_iter)` sets the learning rates.
        device: Where batches are moved to.
        autocast: Gives the context that the forward pass runs in.
        accum_grad_iters: Batches per optimizer step.
        max_grad_norm: Bound of the gradient's norm; 0 or None for none.

    Attributes:
        stopped: Whether the last run ended because a rank was asked to stop.
    """

    def __init__(
        self,
        *,
        task: Any,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Any,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager],
        accum_grad_iters: int = 1,
        max_grad_norm: float | None = None,
    ):
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.device = device
        self.autocast = autocast
        self.accum_grad_iters = accum_grad_iters
        self.max_grad_norm = max_grad_norm or math.inf
        self.stopped = False
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run(
        self,
        batches: Iterator[dict[str, Any]],
        position: Position,
        last_iter: int,
        stop_requested: Callable[[], bool],
    ) -> Iterator[StepRecord]:
        """Train from `position` up to iteration `last_iter` of its epoch, yielding after each optimizer step.

        `position` is moved on with every step. On any rank's stop request all ranks end after the same step.

        Raises:
            NonFiniteLossError: Before the optimizer step that would have used the loss.
        """
        began = time.monotonic()
        while position.epoch_iter < last_iter:
            num_batches = min(self.accum_grad_iters, last_iter - position.epoch_iter)
            self.schedule.set_for(position.steps, position.epoch, position.epoch_iter)
            window = self._accumulate(batches, position, num_batches, last_iter, stop_requested)
            grad_norm = self._step(window, position)
            position.epoch_iter += num_batches
            position.iters += num_batches
            position.steps += 1
            now = time.monotonic()
            yield self._record(window, position, grad_norm, now - began)
            began = now
            self.stopped = window.stop > 0
            if self.stopped:
                return

    def _accumulate(
        self,
        batches: Iterator[dict[str, Any]],
        position: Position,
        num_batches: int,
        last_iter: int,
        stop_requested: Callable[[], bool],
    ) -> _Window:
        """Add up the gradients of one step's batches; ranks exchange them once, with the last batch."""
        window = _Window()
        bad_ids: list[str] = []
        for index in range(num_batches):
            samples = move_to_device(self._next_batch(batches, position), self.device)
            # LAVIS's own models read their place in the run from the batch.
            samples |= {
                "epoch": position.epoch,
                "iters": position.epoch_iter + index,
                "num_iters_per_epoch": last_iter,
            }
            with self._exchange_gradients(index == num_batches - 1):
                loss, weight = self._forward(samples)
                (loss * weight).backward()
            value = loss.item()
            if not math.isfinite(value):
                bad_ids += [str(name) for name in samples.get("instance_id", [])]
            window.loss_sum += value * weight
            window.weight += weight
            window.samples += num_samples(samples)
        window.stop = float(stop_requested())
        window.reduce(self.device)
        if not math.isfinite(window.loss):
            self._refuse("loss", window.loss, position, sum(collectives.gather_objects(bad_ids), []))
        return window

    @staticmethod
    def _next_batch(batches: Iterator[dict[str, Any]], position: Position) -> dict[str, Any]:
        """The next batch.

        Raises:
            DataError: A stream ended before the epoch did.
        """
        batch = next(batches, None)
        if batch is None:
            raise DataError(
                f"The training data ended in epoch {position.epoch} after {position.epoch_iter} iterations; "
                "make run.iters_per_inner_epoch or run.max_iters smaller, or repeat the stream"
            )
        return batch

    def _exchange_gradients(self, exchange: bool) -> contextlib.AbstractContextManager:
        """The context in which DistributedDataParallel does, or does not yet, average gradients."""
        if not exchange and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _forward(self, samples: dict[str, Any]) -> tuple[torch.Tensor, float]:
        """Mean loss of a batch and its weight."""
        with self.autocast():
            if not hasattr(self.task, "train_outputs"):
                return self.task.train_step(model=self.model, samples=samples), 1.0
            outputs = self.task.train_outputs(model=self.model, samples=samples)
        return outputs["loss"], float(outputs["num_supervised_tokens"])

    def _step(self, window: _Window, position: Position) -> float:
        """Turn the sum's gradient into the mean's, clip it, change the weights; gives the unclipped norm."""
        # DistributedDataParallel has divided the sum over ranks by their number.
        scale = collectives.world_size() / max(window.weight, 1.0)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm).item()
        if not math.isfinite(grad_norm):
            self._refuse("gradient", grad_norm, position, [])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _refuse(self, what: str, value: float, position: Position, instance_ids: list[str]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        examples = f" Examples: {', '.join(instance_ids[:32])}." if instance_ids else ""
        raise NonFiniteLossError(
            f"The {what} is {value} at epoch {position.epoch}, iteration {position.epoch_iter}. The weights "
            f"were not changed by it; the last checkpoint is intact.{examples} A lower run.init_lr, a longer "
            "run.warmup_steps or run.precision=fp32 may help; otherwise look at the examples."
        )

    def _record(self, window: _Window, position: Position, grad_norm: float, seconds: float) -> StepRecord:
        return StepRecord(
            step=position.steps - 1,
            epoch=position.epoch,
            iter=position.iters,
            loss=window.loss,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=grad_norm,
            samples=int(window.samples),
            tokens=int(window.weight),
            seconds=round(seconds, 6),
        )
