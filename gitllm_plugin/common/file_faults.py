"""What is wrong with a file that was copied or downloaded, in words, before a library fails on it in its own."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError

_LFS_POINTER = b"version https://git-lfs"
_TORCH_ENDINGS = (".bin", ".pth", ".pt")


def fault_of_file(path: Path) -> str | None:
    """Say what is wrong with a file; None: nothing that can be seen without reading all of it.

    Files of weights are looked at by their tables of contents, which also tell whether something was cut off; JSON is
    read, and has to be a mapping.

    Args:
        path: of any kind; what is expected in it is told by its ending.
    """
    if path.is_dir():
        return "is a folder, expected a file"
    try:
        if path.stat().st_size == 0:
            return "is empty: it was not copied or downloaded whole"
        with path.open("rb") as file:
            begin = file.read(len(_LFS_POINTER))
        if begin == _LFS_POINTER:
            return (
                "is a pointer of git-lfs that stands for the file itself: run `git lfs pull` where it was cloned, or "
                "download the file"
            )
        if path.suffix == ".safetensors":
            return _fault_of_safetensors(path)
        if path.suffix in _TORCH_ENDINGS:
            return _fault_of_torch(path, begin)
        if path.suffix == ".json":
            _parse(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except _NotJsonError as error:
        return str(error)
    return None


def check_readable(path: Path) -> None:
    """Refuse a file of which not a byte can be read.

    Raises:
        ConfigError: the message names it.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def check_file(path: Path) -> None:
    """Refuse a file that :func:`fault_of_file` finds fault with.

    Raises:
        ConfigError: the message names file and fault.
    """
    if fault := fault_of_file(path):
        raise ConfigError(f"{path} {fault}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises:
        ConfigError: it is missing, or holds anything else.
    """
    check_file(path)
    return _parse(path)


class _NotJsonError(Exception):
    """A file holds no JSON, or no mapping."""


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _NotJsonError(f"is no JSON: it is damaged or was cut off ({error})") from error
    if not isinstance(content, dict):
        raise _NotJsonError(f"holds {type(content).__name__} in JSON, expected a mapping")
    return content


def _fault_of_safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open  # other files are also looked at where it is not installed

    try:
        with safe_open(path, "pt"):
            return None
    except SafetensorError as error:
        return f"is no safetensors file, or was cut off ({error})"


def _fault_of_torch(path: Path, begin: bytes) -> str | None:
    # Before torch 1.6 a file was a row of pickles, of which the first begins with the protocol's number.
    if zipfile.is_zipfile(path) or begin[:1] == pickle.PROTO:
        return None
    return "is no file of weights that torch wrote, or was cut off"
