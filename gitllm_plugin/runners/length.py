"""How long a run is, in epochs, iterations and optimizer steps, and where it stands."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gitllm_plugin.errors import ConfigError


@dataclass
class Position:
    """Where a run stands; the next iteration is ``epoch_iter`` of ``epoch``.

    Attributes:
        epoch: counted from 0.
        epoch_iter: iterations (batches) of this epoch that are done.
        iters: iterations of the whole run that are done.
        steps: optimizer steps of the whole run that are done.
        conversations: whether a text so far had turns before it.
    """

    epoch: int = 0
    epoch_iter: int = 0
    iters: int = 0
    steps: int = 0
    conversations: bool = False

    @property
    def last_epoch(self) -> int:
        """The epoch that was trained last, finished or not."""
        return self.epoch if self.epoch_iter else self.epoch - 1


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Attributes:
        iters_per_epoch: batches per epoch and rank.
        max_epoch: number of epochs.
        total_iters: iterations of the whole run.
        accum_grad_iters: batches per optimizer step.
    """

    iters_per_epoch: int
    max_epoch: int
    total_iters: int
    accum_grad_iters: int = 1

    @classmethod
    def of(cls, run_cfg: Mapping[str, Any], batches_per_epoch: int | None, streaming: bool) -> "RunLength":
        """Compute the length that ``run.max_epoch`` and ``run.max_iters`` give: what is reached first ends the run.

        Args:
            run_cfg: the configuration's ``run``.
            batches_per_epoch: of the data; None where it has no end.
            streaming: whether an epoch may be as long as ``run.iters_per_inner_epoch`` says. Without that and an
                end it is ``run.max_iters`` long.

        Raises:
            ConfigError: nothing says how long an epoch of streaming data is.
        """
        max_iters, max_epoch = run_cfg.get("max_iters"), run_cfg.get("max_epoch")
        chosen = run_cfg.get("iters_per_inner_epoch") if streaming else None
        iters_per_epoch = chosen or batches_per_epoch or max_iters
        if iters_per_epoch is None:
            raise ConfigError("Streaming training data has no length: give run.iters_per_inner_epoch or run.max_iters")
        iters_per_epoch = int(iters_per_epoch)
        if max_epoch is None:
            max_epoch = math.ceil(int(max_iters or 0) / iters_per_epoch)
        by_epochs = int(max_epoch) * iters_per_epoch
        total = min(by_epochs, int(max_iters or by_epochs))
        return cls(iters_per_epoch, int(max_epoch), total, int(run_cfg.get("accum_grad_iters", 1)))

    @property
    def num_epochs(self) -> int:
        """Epochs that are begun."""
        return min(self.max_epoch, math.ceil(self.total_iters / self.iters_per_epoch))

    def steps_until(self, iters: int) -> int:
        """Count the optimizer steps of a run's first ``iters`` iterations."""
        # Batches are not accumulated across epochs: an epoch's last step may have fewer.
        epochs, rest = divmod(iters, self.iters_per_epoch)
        steps_per_epoch = math.ceil(self.iters_per_epoch / self.accum_grad_iters)
        return epochs * steps_per_epoch + math.ceil(rest / self.accum_grad_iters)

    def last_iter(self, position: Position) -> int:
        """Give the iteration of the position's epoch at which its training ends: its last, or that of the run."""
        return min(self.iters_per_epoch, position.epoch_iter + self.total_iters - position.iters)

    def is_finished(self, position: Position) -> bool:
        """Tell whether there is nothing left to train."""
        return position.epoch >= self.max_epoch or position.iters >= self.total_iters

    def continue_from(self, content: Mapping[str, Any], streaming: bool) -> Position:
        """Find where a checkpoint stands; files of the host's runners say only the epoch, or only the iterations.

        Iterations and steps are counted as if epochs always had this run's length, so that schedule and end of
        the run fit its batch size and number of processes. Streams have no epochs: their iterations count on.

        Args:
            content: the checkpoint's.
            streaming: whether the data has no epochs.
        """
        before = int(content.get("iters_per_epoch", self.iters_per_epoch))
        if "epoch" not in content or (streaming and before != self.iters_per_epoch):
            epoch, epoch_iter = divmod(int(content["iters"]), self.iters_per_epoch)
        else:
            epoch, epoch_iter = int(content["epoch"]) + 1, int(content.get("epoch_iters", 0))
            if before != self.iters_per_epoch:
                logging.warning(
                    "An epoch had %d iterations and now has %d (another batch size, number of processes or amount of "
                    "data); training goes on with epoch %d%s.",
                    before,
                    self.iters_per_epoch,
                    epoch + 1,
                    ", which is started anew" if epoch_iter else "",
                )
                # Half an epoch of other batches is no place in this one's order.
                epoch_iter = 0
        iters = epoch * self.iters_per_epoch + epoch_iter
        talks = bool(content.get("conversations"))
        return Position(epoch, epoch_iter, iters, self.steps_until(iters), talks)
