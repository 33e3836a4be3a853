"""Checkpoint files that hold plain data: written whole or not at all, read without running anything."""

import os
from pathlib import Path
from typing import Any

import torch

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
