"""From one kind of folder to another: published checkpoints to ours, adapters to merged models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.build import resolve_dtype
from gitllm_plugin.modeling.folder import BASES, PREPROCESSOR, load_folder, save_folder, stored_dtypes
from gitllm_plugin.modeling.lora import merge_lora
from gitllm_plugin.modeling.published import load_published, read_published

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def convert_published(source: str | Path, target: str | Path, lora_alpha: float | None = None) -> None:
    """Turn the folder of a published checkpoint into one of ours, tokenizer and image processor with it.

    Args:
        source: ``config.json`` and weights.
        target: the folder to make.
        lora_alpha: see :func:`~gitllm_plugin.modeling.published.load_published`.

    Raises:
        ConfigError: not a published checkpoint, keys that cannot be explained, or the target is in use.
    """
    source = Path(source).expanduser()
    config, state_dict = read_published(source)
    model = load_published(config, state_dict, lora_alpha=lora_alpha)
    files = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    save_folder(model, target, tokenizer=files, image_processor=_read_json(source / PREPROCESSOR))


def merge_folder(source: str | Path, target: str | Path, dtype: str | None = None) -> None:
    """Write a folder's model with its adapter added to the language model's weights.

    Sums are made in float32 and rounded once, as by ``gitllm export --merge``.

    Args:
        source: a folder with an adapter.
        target: the folder to make; it holds all weights.
        dtype: that language model and image encoder are written in, see
            :func:`~gitllm_plugin.modeling.build.resolve_dtype`; None: each weight as it was.

    Raises:
        ConfigError: not such a folder, no adapter in it, or the target is in use.
    """
    loaded = load_folder(source, dtype="float32")
    written = stored_dtypes(source) if dtype is None else dict.fromkeys(BASES, resolve_dtype(dtype))
    rounded = [
        (parameter, to)
        for base, to in written.items()
        for name, parameter in loaded.model.get_submodule(base).named_parameters()
        # Weights that were trained are float32 beside frozen ones in bfloat16; they are the ones that do not fit.
        if ".lora_" not in name and (dtype is not None or _fits(parameter, to))
    ]
    try:
        merge_lora(loaded.model.language_model)
    except ConfigError as error:
        raise ConfigError(f"{source} has no adapter to merge") from error
    for parameter, to in rounded:
        parameter.data = parameter.data.to(to)
    save_folder(
        loaded.model,
        target,
        tokenizer=loaded.tokenizer,
        image_processor=loaded.image_processor,
        settings=loaded.settings,
    )


def _fits(parameter: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight loses nothing in ``dtype``."""
    return torch.equal(parameter, parameter.to(dtype).to(parameter.dtype))


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None
