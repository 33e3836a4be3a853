"""The training loop: forward, backward, and one optimizer step per window of accumulated batches."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import move_batch
from gitllm_plugin.errors import DataError, GitLLMError
from gitllm_plugin.protocols import CountingTask, offers, weight_of_loss
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loaders import seed_everything
from gitllm_plugin.runners.optimizer import Schedule, step_unless
from gitllm_plugin.runners.parallel import gradients_exchanged, unwrap, whole
from gitllm_plugin.runners.records import StepRecord
from gitllm_plugin.runners.training_data import TrainingData
from gitllm_plugin.runners.unread import ReadStep, Step, Window, read_steps, step_of

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
        due: whether the numbers of all steps are needed after this many; the same on all ranks.
    """

    stop: Callable[[], bool] = lambda: False
    save: Callable[[], bool] = lambda: False
    due: Callable[[int], bool] = lambda steps: False


class TrainingLoop:
    """Runs iterations of a task on a model.

    The loss that is minimised is the mean over all supervised tokens of the step, whatever batch or rank
    they are in: every batch's mean is multiplied with what it was divided by, the number of its tokens or the sum of
    their weights, and the summed gradient is divided by the sum of these once, before clipping. Where a task counts
    nothing each batch weighs the same.

    A step whose loss or gradient is not finite changes no weight: it is reported, with its examples, and skipped.

    No value is read from the device but every ``read_every`` steps, and where somebody needs the numbers: then those of
    all steps since are read together.

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
        max_skipped_steps: most steps in a row that may be skipped; counted when the numbers are read.
        read_every: how often that is, in steps.
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
        read_every: int = 1,
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
        self.read_every = read_every
        self.at = at
        self.stopped = False
        self.save_requested = False
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._skipped_in_a_row = 0
        self._unread: list[Step] = []
        self._read_at = 0.0

    def run(
        self, data: TrainingData, position: Position, last_iter: int, requests: Requests | None = None
    ) -> Iterator[StepRecord]:
        """Train from ``position`` up to iteration ``last_iter`` of its epoch, yielding each optimizer step.

        A step is yielded when its numbers are read, which may be some steps later; those of the last one always are.

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
        self._read_at = time.monotonic()
        # Before the first step too: a rank without data would leave the others waiting in their first exchange.
        window = self._read(batches, position.epoch_iter, last_iter, position.steps + 1)
        self.at(f"step {position.steps + 1}, waiting for the batches of the other ranks")
        missing = ranks.sum_over_ranks([float(window is None)], self.device)[0]
        while position.epoch_iter < last_iter:
            if window is None or missing:
                yield from self._read_numbers()
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
            grad_norm = self._step(sums)
            began_at, position.epoch_iter = position.epoch_iter, done
            position.iters += done - began_at
            position.steps += 1
            self._unread.append(step_of(sums, grad_norm, self._record(sums, position), began_at))
            # Sums over the ranks: what one of them is asked for, all do after the same step.
            self.stopped, self.save_requested = sums.stop > 0, sums.save > 0
            if (
                position.steps % self.read_every == 0
                or done >= last_iter
                or self.stopped
                or self.save_requested
                or requests.due(position.steps)
            ):
                yield from self._read_numbers()
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
    ) -> Window:
        """Add up the gradients of one step's batches; ranks exchange them once, with the last batch."""
        window = Window()
        for index, batch in enumerate(batches):
            self.at(f"step {position.steps + 1}, computing")
            data.note(batch)
            # Of a batch, one says it for all: texts of conversations know what was said before.
            texts = () if position.conversations else batch.get("text_input") or ()
            position.conversations |= any(getattr(text, "turns", ()) for text in texts)
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
                outputs = self._forward(samples)
                self.scaler.scale(outputs["loss"] * weight_of_loss(outputs)).backward()
            window.add(outputs, samples)
        return window

    def _forward(self, samples: dict[str, Any]) -> Mapping[str, Any]:
        """Compute the mean loss of a batch, and what it was divided by."""
        with self.autocast():
            if offers(self.task, CountingTask):
                return self.task.train_outputs(model=self.model, samples=samples)
            loss = self.task.train_step(model=self.model, samples=samples)
        # LAVIS's git main gives what the loss is made of besides.
        return {"loss": loss[0] if isinstance(loss, tuple) else loss, "num_supervised_tokens": 1}

    def _step(self, window: Window) -> torch.Tensor:
        """Turn the sum's gradient into the mean's, clip it, change the weights; gives the unclipped norm."""
        self.scaler.unscale_(self.optimizer)
        # Averaging the gradients has divided the sum over ranks by their number.
        scale = ranks.world_size() / (window.weight or 1.0)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        # Of sharded gradients the norm is spread over the ranks, too.
        grad_norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        # What is not finite is known to the device alone, and stays there.
        step_unless(self.optimizer, ~(grad_norm.isfinite() & window.loss_sum.isfinite()))
        # After a skipped step too: that is how the scaler finds a smaller scale.
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _read_numbers(self) -> Iterator[StepRecord]:
        """Read the numbers of the steps that were not read yet, and give those steps.

        Raises:
            NonFiniteLossError: too many of them in a row could not be used.
        """
        self.at("waiting for what the device computes")
        steps, self._unread = read_steps(self._unread), []
        now = time.monotonic()
        seconds, self._read_at = round((now - self._read_at) / max(1, len(steps)), 6), now
        refused: str | None = None
        for step in steps:
            skipped = None
            if math.isfinite(step.loss) and math.isfinite(step.grad_norm):
                self._skipped_in_a_row = 0
            else:
                skipped = self._report_skipped(step)
            yield replace(step.record, seconds=seconds, skipped=skipped)
            if self._skipped_in_a_row > self.max_skipped_steps and refused is None:
                refused = self._too_many_skipped(step.record.iter)
        # Behind all of them: what was done since is in the weights, so it has to be in the records too.
        if refused is not None:
            raise NonFiniteLossError(refused)

    def _report_skipped(self, step: ReadStep) -> list[str]:
        """Count and log a step that changed no weight, and give the ids of its examples."""
        finite_loss = math.isfinite(step.loss)
        # A scaler that looks for the largest scale that float16 can hold passes it now and then: that is no fault.
        if self.scaler.is_enabled() and finite_loss and self.scaler.get_scale() >= 1:
            return []
        self._skipped_in_a_row += 1
        ids = sum(ranks.gather_objects(step.ids), [])
        what, value = ("gradient", step.grad_norm) if finite_loss else ("loss", step.loss)
        more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        logging.warning(
            "The %s is %s at epoch %d, iteration %d. The step is skipped and the weights are not changed by it. "
            "Examples: %s%s.",
            what,
            value,
            step.record.epoch + 1,
            step.epoch_iter + 1,
            ", ".join(ids[:_SHOWN_IDS]) or "unknown",
            more,
        )
        return ids

    def _too_many_skipped(self, iters: int) -> str:
        return (
            f"{self._skipped_in_a_row} steps in a row, up to iteration {iters}, gave a loss or gradient that "
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

    def _record(self, window: Window, position: Position) -> StepRecord:
        """Note what the host knows of a step that was done."""
        return StepRecord(
            step=position.steps - 1,
            epoch=position.epoch,
            iter=position.iters,
            loss=None,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=None,
            samples=int(window.samples),
            tokens=int(window.tokens),
            seconds=0.0,
        )
