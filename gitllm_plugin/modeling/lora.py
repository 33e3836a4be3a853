"""LoRA on the language model, and on nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from gitllm_plugin.config.model import LoraSettings
from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:  # PEFT is slow to import, and a model without LoRA does without it
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

QKV = "qkv"
ALL_LINEAR = "all-linear"
ADAPTER = "default"


def inject_lora(language_model: PreTrainedModel, settings: LoraSettings, family_targets: tuple[str, ...]) -> None:
    """Put LoRA layers into ``language_model``, in place.

    The base weights keep their values and are frozen by the caller. Only the language model is handed to
    PEFT, so that a target name which the image encoder also uses (``q_proj``) reaches nothing else.

    Raises:
        ConfigError: a target name that no layer has.
    """
    from peft import inject_adapter_in_model

    named = settings.targets or (QKV,)
    targets = resolve_targets(language_model, (named,) if isinstance(named, str) else named, family_targets)
    inject_adapter_in_model(lora_config(language_model, settings, targets), language_model, adapter_name=ADAPTER)


def lora_config(language_model: PreTrainedModel, settings: LoraSettings, targets: list[str]) -> LoraConfig:
    """Make PEFT's configuration of ``settings``."""
    from peft import LoraConfig

    transposed = any(type(layer).__name__ == "Conv1D" for layer in _layers_named(language_model, targets))
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        # GPT-2's layers hold their weights the other way round.
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )


def resolve_targets(
    language_model: PreTrainedModel, targets: tuple[str, ...], family_targets: tuple[str, ...]
) -> list[str]:
    """Find the layer names that ``targets`` means in this language model.

    Raises:
        ConfigError: a name that no layer has.
    """
    linear = _linear_names(language_model)
    # A family lists names for all its members: one of them may have fused what another has apart.
    known = [name for name in family_targets if name in linear]
    resolved: list[str] = []
    for target in targets:
        found = known if target == QKV else linear if target == ALL_LINEAR else [n for n in linear if n == target]
        if not found:
            raise ConfigError(
                f"LoRA targets: {target!r} matches no layer of {type(language_model).__name__}; "
                f"its linear layers are {', '.join(linear)}; {QKV!r} stands for {', '.join(known) or 'none'}, "
                f"{ALL_LINEAR!r} for all"
            )
        resolved += [name for name in found if name not in resolved]
    return resolved


def merge_lora(language_model: PreTrainedModel) -> None:
    """Add every LoRA update to its weight and take the LoRA layers out, in place.

    Sums are made in float32 and rounded once, to the weight's dtype.

    Raises:
        ConfigError: there is no LoRA, or a sum is not finite; layers before that one are merged then.
    """
    layers = _lora_layers(language_model)
    if not layers:
        raise ConfigError("merge: the language model has no LoRA")
    for name, layer in layers.items():
        _merge(name, layer)
        language_model.set_submodule(name, layer.get_base_layer())
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config


@contextmanager
def lora_merged(language_model: PreTrainedModel) -> Iterator[None]:
    """Compute with LoRA added to its weights inside the block, which is faster; the very same weights are back after.

    Sums are those of :func:`merge_lora`. A model without LoRA, or with weights in 4 bits or spread over ranks, stays
    as it is.

    Raises:
        ConfigError: a sum is not finite; the weights are as before.
    """
    layers = {
        name: layer
        for name, layer in _lora_layers(language_model).items()
        if _can_be_added_to(cast(Any, layer.get_base_layer()).weight) and not layer.merged_adapters
    }
    # PEFT's own way back subtracts what it added, which is not exact.
    weights = [cast(Any, layer.get_base_layer()).weight.data for layer in layers.values()]
    try:
        for name, layer in layers.items():
            _merge(name, layer)
        yield
    finally:
        for layer, weight in zip(layers.values(), weights, strict=True):
            cast(Any, layer.get_base_layer()).weight.data = weight
            # Else PEFT takes the layer for merged and leaves its update out.
            layer.merged_adapters.clear()


def _merge(name: str, layer: LoraLayer) -> None:
    """Add a layer's update to its weight, in float32.

    Raises:
        ConfigError: the sum is not finite; the weight is as before.
    """
    base = cast(Any, layer.get_base_layer())
    dtype, in_float32 = base.weight.dtype, _can_be_added_to(base.weight)
    # PEFT rounds the update to the weight's dtype and then the sum: of a small update in bfloat16 little is left.
    if in_float32:
        base.weight.data = base.weight.data.float()
    try:
        # Safe: PEFT adds in a copy, refuses sums that are not finite, and only then exchanges the weight.
        cast(Any, layer).merge(safe_merge=True)
    except ValueError as error:
        raise ConfigError(
            f"the LoRA of {name} cannot be added to its weight: {error}. Where training diverged, take an earlier "
            "checkpoint, and train with a lower learning rate"
        ) from error
    finally:
        # Of a weight that nothing was added to, these are the same bits as before.
        if in_float32:
            base.weight.data = base.weight.data.to(dtype)


def _can_be_added_to(weight: Tensor) -> bool:
    return weight.is_floating_point() and not isinstance(weight, DTensor)


def _lora_layers(language_model: PreTrainedModel) -> dict[str, LoraLayer]:
    if "peft" not in sys.modules:  # so nothing in this process is one of its layers
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in language_model.named_modules() if isinstance(module, LoraLayer)}


def _linear_names(language_model: PreTrainedModel) -> list[str]:
    """List the last pieces of the names of linear layers, the head's left out, each once."""
    head = language_model.get_output_embeddings()
    names = [
        name.rsplit(".", 1)[-1]
        for name, module in language_model.named_modules()
        if module is not head and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    ]
    return list(dict.fromkeys(names))


def _layers_named(language_model: PreTrainedModel, targets: list[str]) -> list[nn.Module]:
    return [module for name, module in language_model.named_modules() if name.rsplit(".", 1)[-1] in targets]
