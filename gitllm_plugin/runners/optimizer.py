"""Parameter groups and the optimizer over them."""

from typing import Any, cast

import torch
from torch import nn

from gitllm_plugin.errors import ConfigError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of trainable parameters, each with `params`, `weight_decay` and `lr_scale`.

    A model with a method `optimizer_groups(weight_decay)` decides itself. Otherwise matrices are decayed and
    vectors (biases, norms) are not.

    Raises:
        ConfigError: Nothing in the model is trainable.
    """
    if hasattr(model, "optimizer_groups"):
        groups = cast(Any, model).optimizer_groups(weight_decay)
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
    """AdamW over the groups of `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=(0.9, beta2))
