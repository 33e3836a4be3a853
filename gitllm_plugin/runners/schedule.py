"""Learning rate as a function of the optimizer step."""

import math

from torch.optim import Optimizer

from gitllm_plugin.errors import ConfigError


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1.0 - progress


def _constant(progress: float) -> float:
    return 1.0


DECAYS = {"cosine": _cosine, "linear": _linear, "constant": _constant}
"""Decay by name: from the progress after warm-up, in [0, 1], to the share of `init_lr - min_lr` left."""


def learning_rate(
    step: int,
    *,
    decay: str,
    total_steps: int,
    warmup_steps: int,
    init_lr: float,
    min_lr: float = 0.0,
    warmup_lr: float = 0.0,
) -> float:
    """The rate of optimizer step `step`, counted from 0.

    During warm-up it rises in equal amounts from `warmup_lr` (exclusive) to `init_lr`, which step
    `warmup_steps` uses; from there it decays towards `min_lr`, reached at step `total_steps`, and stays.
    """
    if step < warmup_steps:
        return warmup_lr + (init_lr - warmup_lr) * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr + (init_lr - min_lr) * DECAYS[decay](progress)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class StepSchedule:
    """Sets the learning rate before each optimizer step, warm-up and decay counted in steps.

    Args:
        optimizer: Its groups carry `lr_scale`.
        decay: A name in `DECAYS`.
        total_steps: Optimizer steps of the whole run.
        warmup_steps: How many of them warm up.
        init_lr: Rate after warm-up.
        min_lr: Rate decayed to.
        warmup_lr: Rate that warm-up rises from.

    Raises:
        ConfigError: Unknown decay or negative `warmup_lr`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: str,
        total_steps: int,
        warmup_steps: int,
        init_lr: float,
        min_lr: float,
        warmup_lr: float = 0.0,
    ):
        if decay not in DECAYS:
            raise ConfigError(f"run.lr_sched is {decay!r}; counted in steps are {', '.join(DECAYS)}")
        if warmup_lr < 0:
            raise ConfigError(f"run.warmup_lr is {warmup_lr}; with run.lr_sched={decay} it must be 0 or more")
        self.optimizer = optimizer
        self.rates = {
            "decay": decay,
            "total_steps": total_steps,
            "warmup_steps": warmup_steps,
            "init_lr": init_lr,
            "min_lr": min_lr,
            "warmup_lr": warmup_lr,
        }

    def set_for(self, step: int, epoch: int, epoch_iter: int) -> None:
        """Set the rate of optimizer step `step`; the position in the epoch does not matter here."""
        set_learning_rate(self.optimizer, learning_rate(step, **self.rates))


class HostSchedule:
    """One of LAVIS's own schedulers, which count iterations within an epoch and know no `lr_scale`."""

    def __init__(self, optimizer: Optimizer, scheduler):
        self.optimizer = optimizer
        self.scheduler = scheduler

    def set_for(self, step: int, epoch: int, epoch_iter: int) -> None:
        """Let the host's scheduler set every group alike, then apply each group's own `lr_scale`."""
        self.scheduler.step(cur_epoch=epoch, cur_step=epoch_iter)
        for group in self.optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
