"""What vLLM cannot compute as GIT-LLM says, told before it answers wrongly. Knows nothing of vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.description import LANGUAGE_MODEL, read_description, says_adapter
from gitllm_plugin.modeling.families import FAMILIES


def check_folder(folder: Path) -> None:
    """Refuse folders that are not read here.

    Raises:
        ConfigError: weights are elsewhere, LoRA is apart, or several pictures make one prefix.
    """
    description = read_description(folder)
    if description[LANGUAGE_MODEL] != LANGUAGE_MODEL:
        raise ConfigError(f"{folder} names its language model and does not hold it: export it with the base")
    if says_adapter(folder, description):
        raise ConfigError(f"{folder} has LoRA beside the language model: `gitllm merge {folder} TARGET` adds it")
    if description["attention"] != "git":
        raise ConfigError(
            f"{folder} was trained with model.attention={description['attention']}, which vLLM is not told of here: "
            "a model with model.attention=git is needed"
        )
    if (places := description["settings"].get("image_places", "front")) != "front":
        raise ConfigError(
            f"{folder} was trained with model.image_places={places}; in vLLM pictures stand in front: a model with "
            "model.image_places=front is needed"
        )
    if (tiles := (description["settings"].get("vis_processor") or {}).get("max_tiles", 1)) > 1:
        raise ConfigError(
            f"{folder} reads pictures in tiles (max_tiles={tiles}), which see each other; in vLLM each image sees "
            "itself alone: a model without max_tiles is needed"
        )
    if description["max_images"] > 1:
        raise ConfigError(
            f"{folder} reads up to {description['max_images']} pictures, which see each other; in vLLM each sees "
            "itself alone: a model with model.max_images=1 is needed"
        )


def check_language_model(config: Any) -> None:
    """Refuse language models whose positions vLLM counts otherwise.

    Raises:
        ConfigError: the family is not known here, or its positions do not run over image and text.
    """
    family = FAMILIES.get(config.model_type)
    positions = None if family is None else family.positions_of(config)
    if positions != "sequence":
        known = sorted(name for name, each in FAMILIES.items() if each.positions == "sequence")
        raise ConfigError(
            f"a language model of type {config.model_type!r} is not served by vLLM here: vLLM counts positions over "
            f"image and text, which these do: {', '.join(known)}"
        )


def check_attention(backends: Iterable[Any]) -> None:
    """Refuse attention that would read a picture causally.

    Args:
        backends: vLLM's class for each layer.

    Raises:
        ConfigError: one of them has no prefix whose tokens see each other.
    """
    for backend in backends:
        if not backend.supports_mm_prefix():
            raise ConfigError(
                f"vLLM's attention {backend.get_name()} reads a picture causally, so that answers would be those of "
                "another computation than the model's: it needs one with supports_mm_prefix (on GPUs TRITON_ATTN or "
                "FLEX_ATTENTION; vLLM has none for CPUs, where `gitllm serve` is to be used)"
            )
