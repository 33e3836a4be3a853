"""Which modules are trained, what of them is saved, and how it loads.

A module is here one of the groups of weights that a configuration can name: ``proj``, ``lora``, ``llm``, ``vit``,
``head``.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gitllm_plugin.common.weights import check_same_weights
from gitllm_plugin.config.model import MODULES, check_modules
from gitllm_plugin.errors import ConfigError

#: Module -> does it hold this parameter? Names are dotted names below GitLLM.
_BY_NAME: dict[str, Callable[[str], bool]] = {
    "proj": lambda name: name.startswith(("projection.", "temporal_embedding", "tile_embedding")),
    "lora": lambda name: ".lora_" in name,
    "llm": lambda name: name.startswith("language_model.") and ".lora_" not in name,
    "vit": lambda name: name.startswith("image_encoder."),
    "all": lambda name: True,
}


def names_of_module(model: nn.Module, module: str) -> set[str]:
    """List the names of a module's parameters, a tied one under each of its names; empty where the model has none."""
    # torch lists a tied weight once, under its first name; a configuration may mean the other.
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if module in _BY_NAME:
        return set(filter(_BY_NAME[module], names))
    if not hasattr(model, "language_model"):
        return set()
    head = cast(Any, model).language_model.get_output_embeddings()
    inside = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in inside}


def select(model: nn.Module, trainable: str | Sequence[str]) -> set[str]:
    """Find the names of the parameters that ``trainable`` means.

    Args:
        model: a GitLLM.
        trainable: modules joined by ``+`` (``proj+lora``, ``proj+head``, ``all``, ...), or a list of modules and of
            patterns over dotted names with ``*`` and ``?`` (``language_model.model.layers.1?.*``).

    Raises:
        ConfigError: an unknown module, or one or a pattern that matches nothing.
    """
    check_modules(trainable)
    chosen = trainable.split("+") if isinstance(trainable, str) else list(trainable)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    selected: set[str] = set()
    for entry in chosen:
        is_pattern = entry not in MODULES
        found = set(fnmatch.filter(names, entry)) if is_pattern else names_of_module(model, entry)
        if not found:
            hint = " (lora needs `lora:` set)" if entry == "lora" else ""
            listing = "" if not is_pattern else "; `gitllm parameters --cfg-path FILE` lists the names"
            raise ConfigError(f"trainable: {entry!r} matches no parameter of this model{hint}{listing}")
        selected |= found
    return selected


def set_trainable(model: nn.Module, trainable: str | Sequence[str]) -> None:
    """Freeze all of ``model`` but what ``trainable`` selects, and keep that in float32.

    Args:
        model: a GitLLM.
        trainable: as for :func:`select`.

    Raises:
        ConfigError: see :func:`select`; or weights that were loaded in 4 bits, which cannot be trained.
    """
    selected = select(model, trainable)
    chosen = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in selected}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if id(parameter) not in chosen:
            continue
        if not parameter.is_floating_point():
            raise ConfigError(f"trainable: {name} was loaded in 4 bits and cannot be trained; train LoRA instead")
        # A step of 1e-4 on a bfloat16 weight is mostly rounded away.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    for module in model.modules():
        # Batch statistics are computed with the weights beside them, and an average moves by less than bfloat16 shows.
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for buffer in module.buffers(recurse=False):
                buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data
    _report_tied(model, selected)


def untie_head(language_model: PreTrainedModel) -> None:
    """Give the head a weight of its own, in place, where it is the input embedding's.

    Raises:
        ConfigError: the head is not tied.
    """
    head, embedding = language_model.get_output_embeddings(), language_model.get_input_embeddings()
    if head is None or cast(Any, head).weight is not cast(Any, embedding).weight:
        raise ConfigError("untie: this language model's head is not tied to its input embedding; leave `untie` out")
    cast(Any, head).weight = nn.Parameter(cast(Any, head).weight.detach().clone())
    language_model.config.tie_word_embeddings = False


def _report_tied(model: nn.Module, selected: set[str]) -> None:
    """Say what else is trained when one of the names of a tied weight was chosen."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        if len(tied) > 1 and not selected.issuperset(names_of_module(model, "llm")):
            logging.warning(
                "%s are one weight: all of them are trained. model.untie: true gives the head a weight of its own.",
                " and ".join(tied),
            )


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    lr_scale: Mapping[str, float] | None = None,
    module_weight_decay: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Group the trained parameters for an optimizer.

    Args:
        model: a GitLLM.
        weight_decay: of matrices; vectors (biases, norms) are not decayed.
        lr_scale: factor on the learning rate per module, as ``{"proj": 3.0}``; 1 where one is not named.
        module_weight_decay: decay of a module's matrices in the place of ``weight_decay``.

    Returns:
        Groups with ``params``, ``weight_decay`` and ``lr_scale``; none of them empty.

    Raises:
        ConfigError: a module is named of which nothing is trained.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = _by_parameter(model, trained, lr_scale or {}, "lr_scale")
    decays = _by_parameter(model, trained, module_weight_decay or {}, "weight_decay")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        # Decay would pull norms from 1, where they start, to 0.
        decay = decays.get(name, weight_decay) if parameter.ndim >= 2 else 0.0
        groups.setdefault((decay, scales.get(name, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def _by_parameter(
    model: nn.Module, trained: Mapping[str, nn.Parameter], by_module: Mapping[str, float], key: str
) -> dict[str, float]:
    """Turn a setting per module into one per trained parameter; a module named later, such as head behind llm, wins."""
    values: dict[str, float] = {}
    for module, value in by_module.items():
        names = names_of_module(model, module) & trained.keys() if module in MODULES else set()
        if not names:
            raise ConfigError(f"{key}: nothing of module {module!r} is trained; modules: {', '.join(MODULES)}")
        values |= dict.fromkeys(names, float(value))
    return values


def trainable_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Give the trained parameters by name; a tied weight appears only where it is trained."""
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
    # In place: the optimizer, FSDP and tied names hold the same tensors.
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in state_dict:
                parameter.copy_(state_dict[name])
