"""LoRA in a folder, in PEFT's form, and by what its language model is told from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from gitllm_plugin.common.file_faults import check_file
from gitllm_plugin.common.weights import check_same_weights
from gitllm_plugin.errors import ConfigError, first_line
from gitllm_plugin.modeling.lora import ADAPTER
from gitllm_plugin.modeling.weightless import weights_left_out

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_SAMPLES = 32


def save_adapter(language_model: PreTrainedModel, folder: Path, base_name: str) -> None:
    """Write LoRA in PEFT's own form: ``PeftModel.from_pretrained(base, folder)`` reads it too."""
    config: LoraConfig = cast(Any, language_model).peft_config[ADAPTER]
    # PEFT reads these two: the first to find the base, the second to load as what is not trained.
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        # peft writes a set in an order that changes from process to process, and with it the file's checksum.
        config.target_modules = cast(Any, sorted(config.target_modules))
    config.save_pretrained(str(folder))
    state = _adapter_state(language_model)
    state = {f"{_PEFT_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapter(language_model: PreTrainedModel, folder: Path) -> None:
    """Put the LoRA layers of a PEFT adapter into ``language_model``, in place.

    Raises:
        ConfigError: a file is missing or damaged, or names or shapes are not this language model's.
    """
    check_file(folder / _CONFIG)
    check_file(folder / _WEIGHTS)
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT and what it calls have many errors for a file with other content
        raise ConfigError(f"{folder / _CONFIG} is no configuration of an adapter: {first_line(error)}") from error
    if not isinstance(config, LoraConfig):
        raise ConfigError(f"{folder / _CONFIG} is of {type(config).__name__}, expected LoRA")
    # It was saved for use, and PEFT would freeze it.
    config.inference_mode = False
    try:
        inject_adapter_in_model(config, language_model, adapter_name=ADAPTER)
    except Exception as error:
        raise ConfigError(f"{folder} is an adapter for another language model: {first_line(error)}") from error
    state = {name.removeprefix(_PEFT_PREFIX): value for name, value in load_file(folder / _WEIGHTS).items()}
    check_same_weights(_adapter_state(language_model), state, str(folder / _WEIGHTS))
    # First: PEFT gave LoRA the dtype of the layer beside it, and what was trained in float32 would be rounded to that.
    for name, parameter in language_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    set_peft_model_state_dict(language_model, state, adapter_name=ADAPTER)


def _adapter_state(language_model: PreTrainedModel) -> dict[str, Tensor]:
    """Give LoRA's weights by PEFT's names. Embeddings stay out: PEFT would look the base up on the hub."""
    return get_peft_model_state_dict(language_model, adapter_name=ADAPTER, save_embedding_layers=False)


def fingerprint(language_model: PreTrainedModel) -> list[float]:
    """Take a few input embeddings: language models of one shape are told apart by them, in any number format."""
    weight = cast(Any, language_model.get_input_embeddings()).weight.detach().flatten()
    places = torch.tensor(_spread_places(len(weight)), device=weight.device)
    return [round(value, 6) for value in weight[places].float().tolist()]


def _spread_places(size: int) -> list[int]:
    """Spread places from first to last, in integers: float32 cannot count the weights of a real embedding."""
    return [number * (size - 1) // (_SAMPLES - 1) for number in range(_SAMPLES)]


def check_fingerprint(language_model: PreTrainedModel, expected: list[float], folder: Path, name: str) -> None:
    """Refuse a language model that is not the one a folder was written with.

    Args:
        language_model: as it was loaded.
        expected: what :func:`fingerprint` gave then.
        folder, name: of the whole and of the language model, for the message.

    Raises:
        ConfigError: other embeddings.
    """
    if weights_left_out():
        return
    found = fingerprint(language_model)
    numbers = [value for value in expected if isinstance(value, (int, float))]
    # bfloat16 keeps 8 bits: a base loaded in it differs by up to 0.4 percent from the float32 original.
    if len(found) != len(numbers) or not torch.allclose(
        torch.tensor(found), torch.tensor(numbers).float(), rtol=0.02, atol=1e-3, equal_nan=True
    ):
        raise ConfigError(f"{folder} was trained on another language model than {name!r}, whose weights differ")
