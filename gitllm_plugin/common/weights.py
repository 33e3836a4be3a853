"""Checkpoint files that hold plain data: written whole or not at all, read without running anything."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gitllm_plugin.common.checksums import damage_of_zip, sum_of_weights
from gitllm_plugin.common.files import atomic_path, storage_error
from gitllm_plugin.errors import ConfigError, first_line

WEIGHTS_ENDING = ".safetensors"
"""Of files that hold weights and nothing else."""

_SUM = "crc32"
"""In the metadata of such a file: what :func:`sum_of_weights` gives."""


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, so that ``path`` is at any time the old file or the new one, whole.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    _write_whole(path, lambda temporary: torch.save(content, temporary))


def write_weights(path: Path, weights: Mapping[str, Tensor], **facts: Any) -> None:
    """Write weights as safetensors, with ``facts`` as its metadata, as :func:`write_checkpoint` writes."""
    # A tied weight that is trained under two names is written twice: the format knows no ties.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    metadata = {"format": "pt", _SUM: sum_of_weights(copies), **{name: str(value) for name, value in facts.items()}}
    _write_whole(path, lambda temporary: save_file(copies, temporary, metadata))


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running nothing that it may contain.

    Args:
        path: a ``.pth`` file, or weights alone as ``.safetensors``.
        mmap: read tensors only when they are used. Their bytes are not compared with the file's checksums then.

    Raises:
        ConfigError: there is no such file, it is not a checkpoint that is plain data, or it is damaged: a ``.pth``
            of torch 1.6 or newer and a ``.safetensors`` of :func:`write_weights` have checksums of all their bytes.
    """
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint {path}")
    try:
        if path.suffix == WEIGHTS_ENDING:
            return {"model": _read_weights(path)}
        content = load_plain_data(path, mmap=mmap, compare=not mmap)
    except DamagedError as error:
        raise _damaged(path, str(error)) from error
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a safetensors file that can be read: {error}") from error
    except ConfigError:
        raise
    except Exception as error:  # torch raises a different class for every way in which a file can be broken
        raise ConfigError(
            f"{path} is not a checkpoint that can be read: it is damaged, or it holds objects other than "
            f"tensors and plain values, which are not loaded because they could run code ({first_line(error)})"
        ) from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{path} is not a checkpoint: it has no weights under 'model'")
    return content


def _read_weights(path: Path) -> dict[str, Tensor]:
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get(_SUM)
    # Other programs write none, nor did version 0.1.0.
    if expected is not None and sum_of_weights(weights) != expected:
        raise _damaged(path, "its weights are not those that were written")
    return weights


class DamagedError(Exception):
    """A file of torch has other bytes than were written; the message is where."""


def load_plain_data(path: Path, *, mmap: bool, compare: bool) -> Any:
    """Read a file of ``torch.save`` onto the CPU, running nothing that it may contain.

    Args:
        path: the file.
        mmap: read tensors only when they are used.
        compare: compare all bytes with the file's checksums first.

    Raises:
        DamagedError: they differ.
        Exception: torch's, which is another one for every way in which a file can be broken.
    """
    # Files older than torch 1.6, which LAVIS's hub has some of, are no zip files and cannot be mapped.
    is_zip = _is_zip(path)
    if is_zip and compare and (damage := damage_of_zip(path)):
        raise DamagedError(damage)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} is not a checkpoint that can be read: it is damaged ({reason}). Take an earlier one")


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        with atomic_path(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode
            write(partial)
            partial.chmod(mode)  # safetensors lets nobody else read what it writes
    except RuntimeError as error:  # torch's own name for a disk that is full
        raise storage_error(path, error) from error


def is_readable(path: Path) -> bool:
    """Tell whether ``path`` is a whole checkpoint, of which no byte is another than was written."""
    try:
        read_checkpoint(path, mmap=True)
        return not _is_zip(path) or damage_of_zip(path) is None
    except (ConfigError, OSError):
        return False


def without_known(model: nn.Module, wanted: Collection[str], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out of the given weights those that are not wanted and that the model has already, number for number.

    LAVIS's ``runner_iter`` saves frozen weights too. A frozen weight that differs stays: it is of another model.

    Args:
        model: whose weights are looked at only where more is given than wanted.
        wanted: names of those that are to be loaded.
        given: the checkpoint's.
    """
    own = model.state_dict() if given.keys() - wanted else {}
    return {
        name: value
        for name, value in given.items()
        if name in wanted or name not in own or not _is_same(own[name], value)
    }


def _is_same(own: Tensor, given: Tensor) -> bool:
    return own.shape == given.shape and torch.equal(own.detach().cpu(), given.to("cpu", own.dtype))


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
