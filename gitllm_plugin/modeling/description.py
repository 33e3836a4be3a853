"""What a folder says that its model is made of: ``git_llm.json``, and ``config.json`` for transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedConfig

from gitllm_plugin.common.file_faults import read_json
from gitllm_plugin.config.model import MOST_MERGED, AttentionKind, ProjectionKind
from gitllm_plugin.errors import ConfigError

DESCRIPTION = "git_llm.json"
TRANSFORMERS_CONFIG = "config.json"
LANGUAGE_MODEL, IMAGE_ENCODER, LORA = "language_model", "image_encoder", "adapter"
FORMAT = 1
MADE_OF = ("max_images", "tile_marks", "projection", "projection_factor", "attention")
"""What a model is made of besides its parts, by its arguments."""
_SAID = ("projection", "projection_factor", "attention", "vision_layer", "max_images", "tile_marks")
_DESCRIBED = {
    LANGUAGE_MODEL: str,
    IMAGE_ENCODER: str,
    "vision_layer": int,
    "max_images": int,
    "fingerprint": list,
    "settings": dict,
}
"""What a description says in every version; since 0.2.0 also whether there is an adapter."""


def read_description(folder: Path) -> dict[str, Any]:
    """Read a folder's description, with what older versions did not say filled in.

    Raises:
        ConfigError: there is none, or it is of another format or not whole.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not a folder of a GIT-LLM: it has no {DESCRIPTION}. `gitllm export RUN FOLDER` makes one of "
            "a training run, `gitllm convert-checkpoint` of a published checkpoint"
        )
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise ConfigError(f"{path} has format {description.get('format')}; this version reads format {FORMAT}")
    expected_types = _DESCRIBED | ({LORA: bool} if LORA in description else {})
    faults = [
        f"{key} is {description[key]!r:.40}, expected {expected.__name__}"
        if key in description
        else f"{key} is missing"
        for key, expected in expected_types.items()
        if type(description.get(key)) is not expected
    ]
    if faults:
        raise ConfigError(f"{path} is no whole description of a GIT-LLM: {'; '.join(faults)}")
    # Version 0.1.0 knew no other, and did not say.
    for key, kinds, usual in (("projection", ProjectionKind, "linear_norm"), ("attention", AttentionKind, "git")):
        kind = description.setdefault(key, usual)
        if kind not in get_args(kinds):
            raise ConfigError(f"{path}: {key} is {kind!r:.40}; it may be {' or '.join(get_args(kinds))}")
    if type(marks := description.setdefault("tile_marks", False)) is not bool:
        raise ConfigError(f"{path}: tile_marks is {marks!r:.40}; it may be true or false")
    factor = description.setdefault("projection_factor", 1)
    if type(factor) is not int or not 1 <= factor <= MOST_MERGED:
        raise ConfigError(f"{path}: projection_factor is {factor!r:.40}; it may be 1 to {MOST_MERGED}")
    return description


def transformers_config(
    text: PreTrainedConfig, vision: PreTrainedConfig, description: Mapping[str, Any], end_tokens: list[int]
) -> dict[str, Any]:
    """Give the content of ``config.json``, by which transformers knows what opens the folder (``hf/configuration.py``).

    Args:
        text, vision: of language model and image encoder.
        description: the content of ``git_llm.json``, which decides.
        end_tokens: with which the language model's own configurations end a text.
    """
    parts = {"text_config": text, "vision_config": vision}
    # As transformers writes them: no paths, no infinities.
    configs = {name: json.loads(config.to_json_string()) for name, config in parts.items()}
    return {
        "architectures": ["GitLLMForConditionalGeneration"],
        "model_type": "git_llm",
        "dtype": configs["text_config"].get("dtype"),
        **{key: description[key] for key in _SAID},
        "end_tokens": end_tokens,
        **configs,
    }


def place_of(folder: Path, description: Mapping[str, Any], base: str) -> str:
    """Find a base's own folder, or the name it goes by elsewhere."""
    return str(folder / base) if description[base] == base else description[base]


def says_adapter(folder: Path, description: Mapping[str, Any]) -> bool:
    """Tell whether LoRA is to be read, and refuse a folder from which it is gone.

    Raises:
        ConfigError: the description says that there is an adapter and there is none, or the other way round.
    """
    found = (folder / LORA).exists()
    # Version 0.1.0 did not say.
    said = description.get(LORA, found)
    if said and not found:
        raise ConfigError(
            f"{folder} has no {LORA}/, but LoRA was trained ({DESCRIPTION}): without it the model gives other answers. "
            "Copy the folder again, whole"
        )
    if found and not said:
        raise ConfigError(f"{folder} has a folder {LORA}/ that its {DESCRIPTION} does not know: it is another model's")
    return found
