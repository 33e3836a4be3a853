"""What changes the weights: parameter groups, the optimizer over them, and its learning rate by step."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from lavis.common.registry import registry
from torch import nn
from torch.optim import Optimizer

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import GroupedModel, offers
from gitllm_plugin.runners.length import RunLength


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters; each group has ``params``, ``weight_decay`` and ``lr_scale``.

    A :class:`~gitllm_plugin.protocols.GroupedModel` decides itself. Otherwise matrices are decayed and vectors
    (biases, norms) are not.

    Raises:
        ConfigError: nothing in the model is trainable.
    """
    if offers(model, GroupedModel):
        groups = model.optimizer_groups(weight_decay)
    else:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("The model has no trainable parameter; unfreeze a part of it or add LoRA")
    for group in groups:
        group.setdefault("lr_scale", 1.0)
    return groups


def build_optimizer(model: nn.Module, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """Make AdamW over the groups of :func:`parameter_groups`; beside a CPU the kind that can skip a step by itself."""
    groups = parameter_groups(model, weight_decay)
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=None if on_cpu else True)


def step_unless(optimizer: Optimizer, useless: torch.Tensor) -> None:
    """Change the weights, unless their gradients are of no use: then weights and the optimizer's state stay the same.

    Args:
        optimizer: where it is a fused one, it looks by itself, on the device; else the flag is read, which costs
            nothing on a CPU.
        useless: bool scalar.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not useless.item():
            optimizer.step()
        return
    # As torch's gradient scaler tells it.
    fused: Any = optimizer
    fused.grad_scale, fused.found_inf = None, useless.float()
    optimizer.step()
    del fused.grad_scale, fused.found_inf


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1.0 - progress


def _constant(progress: float) -> float:
    return 1.0


DECAYS = {"cosine": _cosine, "linear": _linear, "constant": _constant}
"""Decay by name: from the progress after warm-up, in [0, 1], to the share of ``init_lr - min_lr`` left."""


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
    """Compute the rate of optimizer step ``step``, counted from 0.

    During warm-up it rises in equal amounts from ``warmup_lr`` (exclusive) to ``init_lr``, which step
    ``warmup_steps`` uses; from there it decays towards ``min_lr``, reached at step ``total_steps``, and stays.
    """
    if step < warmup_steps:
        # Not from step 0 at warmup_lr itself: that is 0 by default, and the step would be lost.
        return warmup_lr + (init_lr - warmup_lr) * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr + (init_lr - min_lr) * DECAYS[decay](progress)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group ``lr`` times its own ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Schedule(Protocol):
    """Sets the learning rates of a run.

    Attributes:
        rates: what they are computed from, kept in checkpoints to tell a changed schedule; None where it is not known.
    """

    rates: dict[str, Any] | None

    def set_for(self, step: int, epoch: int, epoch_iter: int) -> None:
        """Set the rates of optimizer step ``step``, which begins at iteration ``epoch_iter`` of ``epoch``."""
        ...


class StepSchedule:
    """Sets the learning rate before each optimizer step, warm-up and decay counted in steps.

    Args:
        optimizer: its groups carry ``lr_scale``.
        decay: a name in :data:`DECAYS`.
        total_steps: optimizer steps of the whole run.
        warmup_steps: how many of them warm up.
        init_lr: rate after warm-up.
        min_lr: rate decayed to.
        warmup_lr: rate that warm-up rises from.

    Raises:
        ConfigError: unknown decay or negative ``warmup_lr``.
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
        self.rates: dict[str, Any] | None = {
            "decay": decay,
            "total_steps": total_steps,
            "warmup_steps": warmup_steps,
            "init_lr": init_lr,
            "min_lr": min_lr,
            "warmup_lr": warmup_lr,
        }

    def set_for(self, step: int, epoch: int, epoch_iter: int) -> None:
        """Set the rate of optimizer step ``step``; the position in the epoch does not matter here."""
        set_learning_rate(self.optimizer, learning_rate(step, **self.rates or {}))


class HostSchedule:
    """One of LAVIS's own schedulers, which count iterations within an epoch and know no ``lr_scale``."""

    rates: dict[str, Any] | None = None

    def __init__(self, optimizer: Optimizer, scheduler: Any):
        self.optimizer = optimizer
        self.scheduler = scheduler

    def set_for(self, step: int, epoch: int, epoch_iter: int) -> None:
        """Let the host's scheduler set every group alike, then apply each group's own ``lr_scale``."""
        # It sets one rate for all groups, from scratch at each call: the scales do not pile up.
        self.scheduler.step(cur_epoch=epoch, cur_step=epoch_iter)
        for group in self.optimizer.param_groups:
            group["lr"] *= group["lr_scale"]


def build_schedule(run_cfg: Mapping[str, Any], optimizer: Optimizer, length: RunLength) -> Schedule:
    """Make the schedule that ``run.lr_sched`` names, one of :data:`DECAYS` or of LAVIS's own.

    Args:
        run_cfg: the configuration's ``run``.
        optimizer: whose rates are set.
        length: of the run.

    Raises:
        ConfigError: the name is not known, or its settings are wrong.
    """
    name = run_cfg["lr_sched"]
    init_lr, min_lr = float(run_cfg["init_lr"]), float(run_cfg["min_lr"])
    if name in DECAYS:
        return StepSchedule(
            optimizer,
            name,
            total_steps=length.steps_until(length.total_iters),
            warmup_steps=int(run_cfg["warmup_steps"]),
            init_lr=init_lr,
            min_lr=min_lr,
            warmup_lr=float(run_cfg.get("warmup_lr") or 0.0),
        )
    host_class = registry.get_lr_scheduler_class(name)
    if host_class is None:
        known = ", ".join(registry.list_lr_schedulers())
        raise ConfigError(f"run.lr_sched is {name!r}; it may be one of {known}")
    scheduler = host_class(
        optimizer=optimizer,
        max_epoch=length.max_epoch,
        min_lr=min_lr,
        init_lr=init_lr,
        decay_rate=run_cfg.get("lr_decay_rate"),
        warmup_start_lr=-1 if run_cfg.get("warmup_lr") is None else run_cfg["warmup_lr"],
        warmup_steps=run_cfg.get("warmup_steps") or 0,
    )
    return HostSchedule(optimizer, scheduler)
