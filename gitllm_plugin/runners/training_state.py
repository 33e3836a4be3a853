"""All that a training goes on from: gathered into a checkpoint, and put back."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gitllm_plugin.common import ranks
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners.best_scores import BestScores
from gitllm_plugin.runners.checkpoints import load_trainable_state, trainable_state
from gitllm_plugin.runners.length import Position, RunLength
from gitllm_plugin.runners.seeding import random_state, restore_random_state
from gitllm_plugin.runners.sharding import load_optimizer_state, whole_optimizer_state, whole_tensors
from gitllm_plugin.runners.training_data import TrainingData


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
        """In LAVIS's form, as texts."""
        loss = self.loss_sum / max(1.0, self.tokens)
        return {"lr": f"{self.lr_sum / max(1, self.steps):.3g}", "loss": f"{loss:.3f}"}


@dataclass
class TrainingProgress:
    """How far a training is.

    Attributes:
        position: Where it stands.
        best: Its best validation scores.
        totals: Of the epoch in progress.
        validation_due: Whether the last epoch has still to be evaluated.
    """

    best: BestScores
    position: Position = field(default_factory=Position)
    totals: EpochTotals = field(default_factory=EpochTotals)
    validation_due: bool = False


@dataclass
class TrainingState:
    """What is saved and restored besides the progress.

    Attributes:
        model: Not wrapped.
        optimizer: Over its trained parameters.
        scaler: Of gradients, enabled or not.
        schedule: Of the learning rate.
        length: Of the run.
        data: The training batches.
        config: The resolved configuration, as plain values.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Any
    length: RunLength
    data: TrainingData
    config: dict[str, Any]

    def gather(self, progress: TrainingProgress) -> dict[str, Any]:
        """The content of a checkpoint. All ranks must call it together; only rank 0's is whole."""
        position, best = progress.position, progress.best
        return {
            "model": whole_tensors(trainable_state(self.model)),
            "optimizer": whole_optimizer_state(self.optimizer),
            "config": self.config,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "epoch": position.epoch - 1,
            "epoch_iters": position.epoch_iter,
            "iters_per_epoch": self.length.iters_per_epoch,
            "iters": position.iters,
            "steps": position.steps,
            "totals": vars(progress.totals).copy(),
            "validated": not progress.validation_due,
            "best": [dict(entry) for entry in best.found],
            "best_agg_metric": best.score,
            "best_epoch": best.epoch,
            "schedule": getattr(self.schedule, "rates", None),
            "random": ranks.gather_objects(random_state()),
            "data": ranks.gather_objects(self.data.state_dict()),
        }

    def restore(self, content: dict[str, Any], progress: TrainingProgress, source: str) -> None:
        """Put back what `gather` gave, or what one of LAVIS's own runners saved.

        Raises:
            ConfigError: It is a checkpoint of another model, or holds weights alone.
        """
        if "optimizer" not in content or not {"epoch", "iters"} & content.keys():
            raise ConfigError(f"{source} holds weights but no training state; give it as model.finetuned")
        load_trainable_state(self.model, content["model"], source)
        try:
            load_optimizer_state(self.optimizer, content["optimizer"])
        except ValueError as error:
            raise ConfigError(f"The optimizer's state in {source} does not fit this run: {error}") from error
        if content.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        progress.position = self.length.continue_from(content, self.data.streaming)
        if content.get("totals") and progress.position.epoch_iter:
            progress.totals = EpochTotals(**content["totals"])
        progress.best.found = content.get("best") or []
        progress.validation_due = not content.get("validated", True)
        self._compare_schedule(content)
        self._restore_by_rank(content)

    def _compare_schedule(self, content: dict[str, Any]) -> None:
        """Say that the learning rate goes on differently: a longer run is often meant, another rate is not."""
        before, now = content.get("schedule"), getattr(self.schedule, "rates", None)
        if before and now and before != now:
            changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
            logging.warning("The learning rate goes on by other numbers: %s.", ", ".join(changed))

    def _restore_by_rank(self, content: dict[str, Any]) -> None:
        """Generators and streams; they belong to a rank, so that they do not fit another number of ranks."""
        states, rank = content.get("random") or [], ranks.rank()
        same_ranks = len(states) == ranks.world_size()
        if same_ranks:
            restore_random_state(states[rank])
        self.data.load_state_dicts(content.get("data") or [])
