"""All that a training goes on from: gathered into a checkpoint, and put back.

A checkpoint is a dict of tensors, numbers, strings, lists and dicts, so that ``torch.load(weights_only=True)`` reads
it and nothing in it can run. LAVIS's keys:

    model             trained weights by name
    optimizer         the optimizer's state
    config            the resolved configuration
    scaler            the gradient scaler's state, None without one
    epoch             last epoch whose training was finished, -1 before the first

and those of this runner:

    epoch_iters       iterations done of the epoch after that one, 0 at an epoch's end
    iters_per_epoch   how many iterations an epoch had
    iters             iterations done since the start of the run
    steps             optimizer steps done since the start of the run
    conversations     whether a text so far had turns before it
    totals            sums over this epoch's steps, for LAVIS's log
    validated         whether ``epoch`` was also evaluated
    best              the best validation scores, best first, each with its epoch and steps
    best_agg_metric   the first of them, or None
    best_epoch        its epoch, or None
    schedule          what the learning rate is computed from, None for LAVIS's own schedules
    random            by rank, the states of the random generators
    data              by rank, the position of streaming data, None where it has none
    trained_on        by data set and split, a fingerprint of what is trained on
    written           by name, the bytes that the run's files of lines had, behind which a resumed run cuts them off
"""

import logging
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gitllm_plugin.common import ranks
from gitllm_plugin.common.weights import check_same_weights, read_checkpoint, without_known
from gitllm_plugin.config.run import Order
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import SelectiveModel, offers
from gitllm_plugin.runners.checkpoints import CheckpointFolder, SavingTimes
from gitllm_plugin.runners.length import Position, RunLength
from gitllm_plugin.runners.optimizer import Schedule
from gitllm_plugin.runners.parallel import load_optimizer_state, spread_like, whole_optimizer_state, whole_tensors
from gitllm_plugin.runners.records import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    take_out_lost_lines,
    take_out_lost_steps,
    written_sizes,
)
from gitllm_plugin.runners.training_data import TrainingData

ORDERS: tuple[str, ...] = get_args(Order)


@dataclass
class BestScores:
    """Keeps the best scores, whatever their sign, and the steps at which they were reached.

    Attributes:
        order: one of :data:`ORDERS`: which is better, the larger or the smaller.
        keep: how many are kept.
        found: best first; each has ``score``, ``epoch`` and ``steps``.
    """

    order: str = "max"
    keep: int = 1
    found: list[dict[str, Any]] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """The best score, None before the first."""
        return self.found[0]["score"] if self.found else None

    @property
    def epoch(self) -> int | None:
        """The epoch of the best score."""
        return self.found[0]["epoch"] if self.found else None

    @property
    def steps(self) -> list[int]:
        """The optimizer steps after which the kept scores were reached, best first."""
        return [entry["steps"] for entry in self.found]

    def add(self, score: float, epoch: int, steps: int) -> bool:
        """Note a score, and tell whether it is the best so far; of equal ones the first is.

        Args:
            score: NaN is never the best.
            epoch: that was evaluated.
            steps: optimizer steps done by then. A score for the same steps is replaced: a run that was interrupted
                in its evaluation does it again.
        """
        if math.isnan(score):
            return False
        others = [entry for entry in self.found if entry["steps"] != steps]
        sign = -1 if self.order == "max" else 1
        entries = [*others, {"score": score, "epoch": epoch, "steps": steps}]
        self.found = sorted(entries, key=lambda entry: sign * entry["score"])[: self.keep]
        return self.found[0]["steps"] == steps


@dataclass
class EpochTotals:
    """Sums over the steps of an epoch, of which LAVIS's log gets the averages."""

    loss_sum: float = 0.0
    tokens: float = 0.0
    lr_sum: float = 0.0
    steps: int = 0

    def add(self, loss: float, tokens: float, lr: float) -> None:
        """Count a step."""
        self.loss_sum += loss * tokens
        self.tokens += tokens
        self.lr_sum += lr
        self.steps += 1

    def averages(self) -> dict[str, str]:
        """Give the averages in LAVIS's form, as texts."""
        loss = self.loss_sum / max(1.0, self.tokens)
        return {"lr": f"{self.lr_sum / max(1, self.steps):.3g}", "loss": f"{loss:.3f}"}


@dataclass
class TrainingProgress:
    """How far a training is.

    Attributes:
        position: where it stands.
        best: its best validation scores.
        totals: of the epoch in progress.
        validation_due: whether the last epoch has still to be evaluated.
    """

    best: BestScores
    position: Position = field(default_factory=Position)
    totals: EpochTotals = field(default_factory=EpochTotals)
    validation_due: bool = False

    def end_stretch(self, iters_per_epoch: int, stopped: bool) -> dict[str, str]:
        """Note that training came to its epoch's end, or was stopped before, and give the averages of its steps.

        Args:
            iters_per_epoch: after so many iterations the epoch is done, and the next one begins.
            stopped: whether a signal ended it, so that a resumed run goes on summing in the middle of the epoch.
        """
        if self.position.epoch_iter == iters_per_epoch:
            self.position.epoch, self.position.epoch_iter = self.position.epoch + 1, 0
        averages = self.totals.averages()
        if self.position.epoch_iter == 0 or not stopped:
            self.totals = EpochTotals()
        return averages


@dataclass
class TrainingState:
    """What is saved and restored besides the progress.

    Attributes:
        model: not wrapped.
        optimizer: over its trained parameters.
        scaler: of gradients, enabled or not.
        schedule: of the learning rate.
        length: of the run.
        data: the training batches.
        config: the resolved configuration, as plain values.
        trained_on: fingerprints of the training data, on the first rank.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    length: RunLength
    data: TrainingData
    config: dict[str, Any]
    trained_on: dict[str, str]

    def gather(self, progress: TrainingProgress) -> dict[str, Any]:
        """Gather the content of a checkpoint. All ranks must call it together; only rank 0's is whole."""
        position, best = progress.position, progress.best
        return {
            "model": whole_tensors(trainable_state(self.model)),
            "optimizer": whole_optimizer_state(self.optimizer),
            "config": self.config,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            # As LAVIS counts: its runners go on with the epoch after this one.
            "epoch": position.epoch - 1,
            "epoch_iters": position.epoch_iter,
            "iters_per_epoch": self.length.iters_per_epoch,
            "iters": position.iters,
            "steps": position.steps,
            "conversations": position.conversations,
            "totals": vars(progress.totals).copy(),
            "validated": not progress.validation_due,
            "best": [dict(entry) for entry in best.found],
            "best_agg_metric": best.score,
            "best_epoch": best.epoch,
            "schedule": self.schedule.rates,
            "random": ranks.gather_objects(random_state()),
            "data": ranks.gather_objects(self.data.state_dict()),
            "trained_on": self.trained_on,
        }

    def restore(self, content: dict[str, Any], progress: TrainingProgress, source: str) -> None:
        """Put back what :meth:`gather` gave, or what one of LAVIS's own runners saved.

        Args:
            content: of a checkpoint.
            progress: changed in place.
            source: where the content is from, for messages.

        Raises:
            ConfigError: it is a checkpoint of another model, or holds weights alone.
        """
        if "optimizer" not in content or not {"epoch", "iters"} & content.keys():
            raise ConfigError(f"{source} holds weights but no training state; give it as model.finetuned")
        load_trainable_state(self.model, content["model"], source)
        # After the weights, whose errors name what differs; torch's about an optimizer does not.
        try:
            load_optimizer_state(self.optimizer, content["optimizer"])
        except ValueError as error:
            raise ConfigError(f"The optimizer's state in {source} does not fit this run: {error}") from error
        if content.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        progress.position = self.length.continue_from(content, self.data.streaming)
        if content.get("totals") and progress.position.epoch_iter:
            # Only within an epoch: at its end they belong to one that is over.
            progress.totals = EpochTotals(**content["totals"])
        progress.best.found = content.get("best") or []
        progress.validation_due = not content.get("validated", True)
        self._compare_schedule(content)
        self._restore_by_rank(content)

    def _compare_schedule(self, content: dict[str, Any]) -> None:
        """Say that the learning rate goes on differently: a longer run is often meant, another rate is not."""
        before, now = content.get("schedule"), self.schedule.rates
        if before and now and before != now:
            changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
            logging.warning("The learning rate goes on by other numbers: %s.", ", ".join(changed))

    def _restore_by_rank(self, content: dict[str, Any]) -> None:
        """Put back generators and streams, which belong to a rank: generators do not fit another number of ranks."""
        states = content.get("random") or []
        if len(states) == ranks.world_size():
            restore_random_state(states[ranks.rank()])
        self.data.load_state_dicts(content.get("data") or [])


class Saving:
    """Writes the checkpoints of a run, and takes the run up from one; all ranks together.

    Args:
        state: what is saved besides the progress.
        checkpoints: where.
        times: are told when.
    """

    def __init__(self, state: TrainingState, checkpoints: CheckpointFolder, times: SavingTimes):
        self.state = state
        self.checkpoints = checkpoints
        self.times = times

    def save(self, progress: TrainingProgress) -> None:
        """Write a checkpoint.

        Raises:
            StorageError: it cannot be written; those before it are whole.
        """
        content = self.state.gather(progress) | {"written": written_sizes(self.checkpoints.run_folder)}
        ranks.from_first_rank(lambda: self.checkpoints.write(content, progress.best.steps))
        self.times.note_saved()

    def resume(self, path: Path, progress: TrainingProgress) -> None:
        """Go on from a checkpoint: put back the state, and take out of the run's folder what came after it.

        Args:
            path: the checkpoint's.
            progress: changed in place.

        Raises:
            ConfigError: the file is no checkpoint, or one of another model.
        """
        content = read_checkpoint(path)
        self.state.restore(content, progress, str(path))
        ranks.from_first_rank(lambda: self._tidy(content, progress))
        position = progress.position
        logging.info(
            "Resuming %s after %d iterations (%d of epoch %d).",
            path,
            position.iters,
            position.epoch_iter,
            position.epoch + 1,
        )

    def _tidy(self, content: dict[str, Any], progress: TrainingProgress) -> None:
        self.checkpoints.tidy()
        # A process may have been killed between writing the best one and naming it.
        self.checkpoints.name_best(progress.best.steps)
        if "steps" in content:  # else one of LAVIS's own runners wrote it, which keep no records
            epoch, steps = int(content["epoch"]) + 1, int(content["steps"])
            folder = self.checkpoints.run_folder
            take_out_lost_lines(folder, content.get("written") or {}, progress.position)
            # Checkpoints of earlier versions name no sizes; these two files say themselves what is older.
            take_out_lost_steps(folder / METRICS_FILE, epoch, steps)
            take_out_lost_steps(folder / EVALUATIONS_FILE, epoch, steps + 1)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Select the weights of ``model`` that training changes.

    A :class:`~gitllm_plugin.protocols.SelectiveModel` answers itself. For others it is the state dict without the
    frozen parameters, under whatever names they have: a head tied to a frozen embedding is frozen too.
    """
    if offers(model, SelectiveModel):
        return model.trainable_state_dict()
    # With all names of tied weights: state_dict has them all.
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trainable_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put the weights of a checkpoint into ``model``, after checking that they are this model's, all of them.

    A :class:`~gitllm_plugin.protocols.SelectiveModel` checks and loads itself.

    Args:
        model: changed in place.
        state: weights by name.
        source: where they come from, for the message.

    Raises:
        ConfigError: names or shapes differ; the message lists them.
    """
    wanted = trainable_state(model)
    state = spread_like(wanted, without_known(model, wanted.keys(), state))
    if offers(model, SelectiveModel):
        model.load_trainable_state_dict(state, source)
    else:
        check_same_weights(wanted, state, source)
        # Not strict: frozen weights are in the model and not in the checkpoint. Names were checked above.
        model.load_state_dict(state, strict=False)


def random_state() -> dict[str, Any]:
    """Give the states of this process's generators, as plain values and tensors."""
    version, python, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "python": [version, torch.tensor(python), gauss],
        # As a tensor: torch.load(weights_only=True) reads no arrays.
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave; a GPU's is left out where there is none."""
    version, python, gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
