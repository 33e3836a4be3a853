"""The training loop: forward, backward, and one optimizer step per window of accumulated batches."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import move_batch, num_samples
from gitllm_plugin.errors import DataError, GitLLMError
from gitllm_plugin.protocols import CountingTask, offers, weight_of_loss
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loaders import seed_everything
from gitllm_plugin.runners.optimizer import Schedule
from gitllm_plugin.runners.parallel import gradients_exchanged, unwrap, whole
from gitllm_plugin.runners.records import StepRecord
from gitllm_plugin.runners.training_data import TrainingData

_SHOWN_IDS = 32  # a log stays readable; metrics.jsonl has all of them


class NonFiniteLossError(GitLLMError):
    """The loss or its gradient was infinite or not a number more often than a run allows."""


class DataEndedError(DataError):
    """The training data of a rank ended before the epoch did; all ranks raise it, after the same step."""


@dataclass
class Requests:
    """What may end the loop or interrupt it; asked after every step, on every rank.

    Attributes:
        stop: whether training is to stop.
        save: whether a checkpoint is to be written.
    """

    stop: Callable[[], bool] = lambda: False
    save: Callable[[], bool] = lambda: False


@dataclass
class _Window:
    """Sums over the batches of one optimizer step; after :meth:`reduce`, over the ranks too."""

    loss_sum: float = 0.0
    weight: float = 0.0
    tokens: float = 0.0
    samples: float = 0.0
    stop: float = 0.0
    save: float = 0.0
    missing: float = 0.0
    ids: list[str] = field(default_factory=list)
    bad_ids: list[str] = field(default_factory=list)

    def add(self, loss: float, weight: float, tokens: int, samples: dict[str, Any]) -> None:
        """Count a batch by its mean loss and what that was divided by."""
        ids = [str(name) for name in samples.get("instance_id", [])]
        self.ids += ids
        if not math.isfinite(loss):
            self.bad_ids += ids
        self.loss_sum += loss * weight
        self.weight += weight
        self.tokens += tokens
        self.samples += num_samples(samples)

    def reduce(self, device: torch.device) -> None:
        """Sum over the ranks."""
        names = ("loss_sum", "weight", "tokens", "samples", "stop", "save", "missing")
        sums = ranks.sum_over_ranks([getattr(self, name) for name in names], device)
        for name, value in zip(names, sums, strict=True):
            setattr(self, name, value)

    @property
    def loss(self) -> float:
        return self.loss_sum / (self.weight or 1.0)


class TrainingLoop:
    """Runs iterations of a task on a model.

    The loss that is minimised is the mean over all supervised tokens of the step, whatever batch or rank
    they are in: every batch's mean is multiplied with what it was divided by, the number of its tokens or the sum of
    their weights, and the summed gradient is divided by the sum of these once, before clipping. Where a task counts
    nothing each batch weighs the same.

    A step whose loss or gradient is not finite changes no weight: it is reported, with its examples, and skipped.

    Args:
        task: LAVIS's task; a :class:`~gitllm_plugin.protocols.CountingTask` gives loss and tokens, any other a loss.
        model: as the ranks share it, see :mod:`gitllm_plugin.runners.parallel`.
        optimizer: its groups hold every trainable parameter.
        schedule: sets the learning rates.
        scaler: of gradients in float16; disabled otherwise.
        device: where batches are moved to.
        autocast: gives the context that the forward pass runs in.
        seed: what random numbers of the forward pass are drawn from, with their place in the run.
        accum_grad_iters: batches per optimizer step.
        max_grad_norm: bound of the gradient's norm; 0 or None for none.
        max_skipped_steps: most steps in a row that may be skipped.
        at: is told what this rank does, for messages about ranks that are stuck.

    Attributes:
        stopped: whether the last run ended because a rank was asked to stop.
        save_requested: whether a rank was asked to save after the last step.
    """

    def __init__(
        self,
        *,
        task: Any,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager],
        seed: int,
        accum_grad_iters: int = 1,
        max_grad_norm: float | None = None,
        max_skipped_steps: int = 0,
        at: Callable[[str], None] = lambda place: None,
    ):
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.scaler = scaler
        self.device = device
        self.autocast = autocast
        self.seed = seed
        self.accum_grad_iters = accum_grad_iters
        self.max_grad_norm = max_grad_norm or math.inf
        self.max_skipped_steps = max_skipped_steps
        self.at = at
        self.stopped = False
        self.save_requested = False
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._skipped_in_a_row = 0

    def run(
        self, data: TrainingData, position: Position, last_iter: int, requests: Requests | None = None
    ) -> Iterator[StepRecord]:
        """Train from ``position`` up to iteration ``last_iter`` of its epoch, yielding after each optimizer step.

        Args:
            data: the training batches.
            position: moved on with every step.
            last_iter: where training of the epoch ends.
            requests: on that of any rank all ranks stop, or save, after the same step.

        Raises:
            NonFiniteLossError: too many steps in a row could not be used.
            DataEndedError: on all ranks, when the data of one ended before the epoch did.
        """
        requests = requests or Requests()
        batches = data.batches(position)
        began = time.monotonic()
        # Before the first step too: a rank without data would leave the others waiting in their first exchange.
        window = self._read(batches, position.epoch_iter, last_iter, position.steps + 1)
        self.at(f"step {position.steps + 1}, waiting for the batches of the other ranks")
        missing = ranks.sum_over_ranks([float(window is None)], self.device)[0]
        while position.epoch_iter < last_iter:
            if window is None or missing:
                self._refuse_short_data(position)
            self.schedule.set_for(position.steps, position.epoch, position.epoch_iter)
            sums = self._accumulate(data, window, position, last_iter)
            # The next batches are read before the ranks meet, so that all learn of it when one has no more.
            done = position.epoch_iter + len(window)
            window = self._read(batches, done, last_iter, position.steps + 2)
            sums.missing = float(window is None)
            sums.stop, sums.save = float(requests.stop()), float(requests.save())
            self.at(f"step {position.steps + 1}, exchanging sums with the other ranks")
            sums.reduce(self.device)
            missing = sums.missing
            grad_norm, used = self._step(sums)
            skipped = None if used else self._report_skipped(sums, grad_norm, position)
            position.iters += done - position.epoch_iter
            position.epoch_iter = done
            position.steps += 1
            # Sums over the ranks: what one of them is asked for, all do after the same step.
            self.stopped, self.save_requested = sums.stop > 0, sums.save > 0
            now = time.monotonic()
            yield self._record(sums, position, grad_norm, now - began, skipped)
            began = now
            if self._skipped_in_a_row > self.max_skipped_steps:
                self._refuse_to_skip(position)
            if self.stopped:
                return

    def _read(
        self, batches: Iterator[dict[str, Any]], epoch_iter: int, last_iter: int, step: int
    ) -> list[dict[str, Any]] | None:
        """Read the batches of the step that begins at iteration ``epoch_iter``; None where the data has not so many."""
        self.at(f"step {step}, reading batches")
        count = min(self.accum_grad_iters, last_iter - epoch_iter)
        window = list(itertools.islice(batches, count))
        return window if len(window) == count else None

    def _accumulate(
        self, data: TrainingData, batches: list[dict[str, Any]], position: Position, last_iter: int
    ) -> _Window:
        """Add up the gradients of one step's batches; ranks exchange them once, with the last batch."""
        window = _Window()
        for index, batch in enumerate(batches):
            self.at(f"step {position.steps + 1}, computing")
            data.note(batch)
            samples = move_batch(batch, unwrap(self.model), self.device)
            # LAVIS's own models read their place in the run from the batch.
            samples |= {
                "epoch": position.epoch,
                "iters": position.epoch_iter + index,
                "num_iters_per_epoch": last_iter,
            }
            # Afresh for every batch: what evaluations and workers drew in between must not show in the next one.
            seed_everything(self.seed, ranks.rank(), position.epoch, position.epoch_iter + index)
            # The sum over tokens and not their mean: what it is divided by is known at the step's end, over all ranks.
            with gradients_exchanged(self.model, index == len(batches) - 1):
                loss, weight, tokens = self._forward(samples)
                self.scaler.scale(loss * weight).backward()
            window.add(loss.item(), weight, tokens, samples)
        return window

    def _forward(self, samples: dict[str, Any]) -> tuple[torch.Tensor, float, int]:
        """Compute the mean loss of a batch; give also what it was divided by, and the number of its tokens."""
        with self.autocast():
            if not offers(self.task, CountingTask):
                loss = self.task.train_step(model=self.model, samples=samples)
                # LAVIS's git main gives what the loss is made of besides.
                return loss[0] if isinstance(loss, tuple) else loss, 1.0, 1
            outputs = self.task.train_outputs(model=self.model, samples=samples)
        return outputs["loss"], weight_of_loss(outputs), int(outputs["num_supervised_tokens"])

    def _step(self, window: _Window) -> tuple[float, bool]:
        """Turn the sum's gradient into the mean's, clip it, change the weights.

        Returns:
            the unclipped norm, and whether the weights were changed.
        """
        self.scaler.unscale_(self.optimizer)
        # Averaging the gradients has divided the sum over ranks by their number.
        scale = ranks.world_size() / (window.weight or 1.0)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        # Of sharded gradients the norm is spread over the ranks, too.
        grad_norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)).item()
        used = math.isfinite(grad_norm) and math.isfinite(window.loss)
        if used:
            self.scaler.step(self.optimizer)
            self._skipped_in_a_row = 0
        # After a skipped step too: that is how the scaler finds a smaller scale.
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm, used

    def _report_skipped(self, window: _Window, grad_norm: float, position: Position) -> list[str]:
        """Count and log a step that changed no weight, and give the ids of its examples."""
        # A scaler that looks for the largest scale that float16 can hold passes it now and then: that is no fault.
        if self.scaler.is_enabled() and math.isfinite(window.loss) and self.scaler.get_scale() >= 1:
            return []
        self._skipped_in_a_row += 1
        ids = window.bad_ids if not math.isfinite(window.loss) else window.ids
        ids = sum(ranks.gather_objects(ids), [])
        what, value = ("gradient", grad_norm) if math.isfinite(window.loss) else ("loss", window.loss)
        more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        logging.warning(
            "The %s is %s at epoch %d, iteration %d. The step is skipped and the weights are not changed by it. "
            "Examples: %s%s.",
            what,
            value,
            position.epoch + 1,
            position.epoch_iter + 1,
            ", ".join(ids[:_SHOWN_IDS]) or "unknown",
            more,
        )
        return ids

    def _refuse_to_skip(self, position: Position) -> NoReturn:
        raise NonFiniteLossError(
            f"{self._skipped_in_a_row} steps in a row, up to iteration {position.iters}, gave a loss or gradient that "
            f"is not finite; run.max_skipped_steps allows {self.max_skipped_steps}. The weights were not changed by "
            "them. A lower run.init_lr, a longer run.warmup_steps or run.precision=fp32 may help; "
            "otherwise look at the examples named above and in metrics.jsonl."
        )

    @staticmethod
    def _refuse_short_data(position: Position) -> NoReturn:
        raise DataEndedError(
            f"The training data ended in epoch {position.epoch + 1} after {position.epoch_iter} iterations"
            f"{'' if ranks.world_size() == 1 else ' on one of the ranks or more'}; "
            "make run.iters_per_inner_epoch or run.max_iters smaller, or repeat the stream"
        )

    def _record(
        self, window: _Window, position: Position, grad_norm: float, seconds: float, skipped: list[str] | None
    ) -> StepRecord:
        return StepRecord(
            step=position.steps - 1,
            epoch=position.epoch,
            iter=position.iters,
            loss=window.loss if math.isfinite(window.loss) else None,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
            samples=int(window.samples),
            tokens=int(window.tokens),
            seconds=round(seconds, 6),
            skipped=skipped,
        )
