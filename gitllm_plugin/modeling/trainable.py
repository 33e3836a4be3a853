"""Which parts are trained, what of them is saved, and how they load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.checkpoint import check_same_weights

#: Part -> does it hold this parameter? Names are dotted names below GitLLM.
PARTS: dict[str, Callable[[str], bool]] = {
    "proj": lambda name: name.startswith(("projection.", "temporal_embedding")),
    "lora": lambda name: ".lora_" in name,
    "llm": lambda name: name.startswith("language_model.") and ".lora_" not in name,
    "vit": lambda name: name.startswith("image_encoder."),
}


def set_trainable(model: nn.Module, parts: str) -> None:
    """Freeze all of ``model`` but ``parts``, and keep what is trained in float32.

    Args:
        model: a GitLLM.
        parts: names joined by ``+``: ``proj``, ``proj+lora``, ``proj+llm``, ``proj+lora+vit``, ...

    Raises:
        ConfigError: an unknown part, or one that this model does not have.
    """
    chosen = parts.split("+")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise ConfigError(f"trainable: unknown part {unknown} in {parts!r}; parts: {', '.join(PARTS)}, joined by '+'")
    names = [name for name, _ in model.named_parameters()]
    for part in chosen:
        if not any(map(PARTS[part], names)):
            raise ConfigError(f"trainable: {part!r} matches no parameter of this model (lora needs `lora:` set)")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(PARTS[part](name) for part in chosen))
        if parameter.requires_grad:
            # A step of 1e-4 on a bfloat16 weight is mostly rounded away.
            parameter.data = parameter.data.float()


def parameter_groups(model: nn.Module, weight_decay: float, lr_scale: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters as groups for an optimizer.

    Args:
        model: a GitLLM.
        weight_decay: of matrices; vectors (biases, norms) are not decayed.
        lr_scale: factor on the learning rate per part, as ``{"proj": 3.0}``; 1 where a part is not named.

    Returns:
        Groups with ``params``, ``weight_decay`` and ``lr_scale``; none of them empty.

    Raises:
        ConfigError: ``lr_scale`` names a part of which nothing is trained.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for part in lr_scale:
        if part not in PARTS or not any(PARTS[part](name) for name, _ in trained):
            raise ConfigError(f"lr_scale: nothing of part {part!r} is trained; parts: {', '.join(PARTS)}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        scale = next((float(factor) for part, factor in lr_scale.items() if PARTS[part](name)), 1.0)
        groups.setdefault((weight_decay if parameter.ndim >= 2 else 0.0, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def trainable_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name; a tied weight appears only where it is trained."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def load_trainable_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "the state dict"
) -> None:
    """Load what :func:`trainable_state_dict` gave, by name and shape, all of it or nothing.

    Args:
        model: changed in place.
        state_dict: weights by name.
        source: where they come from, for the message.

    Raises:
        ConfigError: names are missing or unknown, or shapes differ; the message lists them.
    """
    check_same_weights(trainable_state_dict(model), state_dict, source)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in state_dict:
                parameter.copy_(state_dict[name])
