"""Checkpoint files that hold plain data: written whole or not at all, read without running anything."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gitllm_plugin.errors import ConfigError


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` beside `path` and rename it: `path` is at any time the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running nothing that it may contain.

    Raises:
        ConfigError: No such file, or not a checkpoint that is plain data.
    """
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for every way in which a file can be broken
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{path} is not a checkpoint that can be read: it is damaged, or it holds objects other than "
            f"tensors and plain values, which are not loaded because they could run code ({reason})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ConfigError(f"{path} is not a checkpoint: it has no weights under 'model'")
    return content


def check_same_weights(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not exactly those a model wants, by name and shape.

    Args:
        wanted: the model's weights.
        given: the checkpoint's.
        source: where the latter come from, for the message.

    Raises:
        ConfigError: names or shapes differ; the message lists them.
    """
    faults = [f"missing: {name}" for name in wanted if name not in given]
    faults += [f"not in the model: {name}" for name in given if name not in wanted]
    faults += [
        f"shape of {name}: {list(given[name].shape)} in the file, {list(wanted[name].shape)} in the model"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if faults:
        shown = "\n  ".join(faults[:10]) + (f"\n  and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise ConfigError(
            f"{source} is a checkpoint of another model ({len(faults)} differences). Use the model's "
            f"configuration that it was trained with, which it holds under 'config'.\n  {shown}"
        )
