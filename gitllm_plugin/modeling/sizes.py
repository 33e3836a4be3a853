"""Whether a model's configuration speaks of a model as large as its weights' files, before anything of it is made.

A configuration of somebody else's with a size too many asks for more memory than there is, as lists in Python, as
modules, or as tensors. Three bounds, each before the next: the numbers in the JSON by themselves, the layers by how
many tensors there are, and all tensors, made without memory, by the bytes that there are of them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gitllm_plugin.errors import ConfigError

_COUNT = re.compile(r"(^|_)n?_?(layers?|depths?|heads?|blocks?|stages?|experts?|labels?|groups?)($|_)")
_SIZE = re.compile(r"(^|_)n?_?(sizes?|dims?|width|channels?|embd|inner|hidden|positions?|embeddings|tokens|rank)($|_)")
_MOST_COUNT, _MOST_SIZE = 100_000, 2**31
_LAYERS = re.compile(r"^(num_)?(hidden_)?n?_?(encoder_|decoder_)?layers?$|^depths?$")

_NUMBERS_PER_BYTE = 8  # of weights that are kept in one bit each
_FEW = 10_000_000  # numbers, which take 40 MB at most


def check_numbers(content: Any, source: str | Path, tensors: int | None = None) -> None:
    """Refuse numbers that no model's configuration has.

    Args:
        content: of ``config.json``.
        source: its file, for the message.
        tensors: how many the weights' files have; None: not known.

    Raises:
        ConfigError: names key and number.
    """
    for key, number in _numbers(content):
        most = _MOST_COUNT if _COUNT.search(key) else _MOST_SIZE
        if tensors is not None and _LAYERS.search(key):
            most = min(most, tensors)
        if not abs(number) <= most:  # NaN is not, either
            of = f", of which the weights' files have {tensors:,} tensors" if most == tensors else ""
            shown = f"{number:.4g}" if abs(number) < 1e300 else "a number of hundreds of digits"
            raise ConfigError(f"{source} says {key}: {shown}{of}: it is damaged, or no model's configuration")


def check_model(make: Callable[[], nn.Module], size: int, what: str) -> None:
    """Refuse a configuration of a far larger model than its weights are.

    Args:
        make: makes the model, without weights.
        size: bytes of the weights' files.
        what: kind and name of the model, for the message.

    Raises:
        ConfigError: says how large both are.
        Exception: what ``make`` raises.
    """
    with torch.device("meta"):
        model = make()
    # Buffers too: a mask of positions by positions is one.
    needed = sum(value.numel() for values in (model.parameters(), model.buffers()) for value in values)
    if needed > _NUMBERS_PER_BYTE * size + _FEW:
        raise ConfigError(
            f"{what} has other weights than its configuration says: it asks for {needed:,} numbers, and the files have "
            f"{size:,} bytes. Fetch or save it again, whole"
        )


def count_tensors(files: Iterable[Path]) -> int:
    """Count the tensors in files of weights, by their tables of contents."""
    count = 0
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                count += len(opened.keys())
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                count += sum("/data/" in name for name in archive.namelist())
    return count


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Give all numbers that are counts or sizes, by their keys, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _numbers(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, key)
    elif (_COUNT.search(key) or _SIZE.search(key)) and type(content) in (int, float):  # True is an int, too
        yield key, content
