"""Between host and device: what the host knows goes there without waiting, and what it must read comes in one transfer.

A device computes behind the host: it is told what to do, and does it later. Whoever reads a value of it waits until all
that came before is done, and whoever sends it something from ordinary memory may wait as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_ALIGNED = 8
"""Tensors sent together begin at multiples of so many numbers, which compiled code asks for."""

Moved = TypeVar("Moved")


def to_device(value: Moved, device: torch.device) -> Moved:
    """Send the tensors of a value that are on the host to a device, all of one dtype in one copy; without waiting.

    Args:
        value: a tensor, or tuples, dicts and dataclasses of tensors, at any depth; other things in it stay as they are.
        device: where computing goes on; where it is the CPU, ``value`` itself is given back.
    """
    if device.type == "cpu":
        return value
    tensors = {id(tensor): tensor for tensor in _tensors_of(value) if tensor.device.type == "cpu"}
    sent: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        group = {key: tensor for key, tensor in tensors.items() if tensor.dtype == dtype}
        sizes = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in group.values()]
        # From memory that is not pinned the copy would wait for the device.
        buffer = torch.empty(sum(sizes), dtype=dtype, pin_memory=True)
        for tensor, piece in zip(group.values(), buffer.split(sizes), strict=True):
            piece[: tensor.numel()].copy_(tensor.reshape(-1))
        pieces = buffer.to(device, non_blocking=True).split(sizes)
        for (key, tensor), piece in zip(group.items(), pieces, strict=True):
            sent[key] = piece[: tensor.numel()].view(tensor.shape)
    return _replaced(value, sent)


def to_host(*values: Tensor | None) -> list[Any]:
    """Bring tensors to the host, in one transfer, which waits for the device; not at all where none is on a device.

    Args:
        *values: bools, integers or floats up to 64 bits; None stays None.

    Returns:
        The same values, on the CPU.
    """
    away = [value for value in values if value is not None and value.device.type != "cpu"]
    if not away:
        return list(values)
    # As 64 bits each: every number stays what it is.
    packed = torch.cat([_as_words(value) for value in away]).cpu()
    pieces = iter(packed.split([value.numel() for value in away]))
    return [
        value if value is None or value.device.type == "cpu" else _from_words(next(pieces), value) for value in values
    ]


def _as_words(value: Tensor) -> Tensor:
    value = value.detach().reshape(-1)
    return value.double().view(torch.int64) if value.is_floating_point() else value.to(torch.int64)


def _from_words(words: Tensor, like: Tensor) -> Tensor:
    numbers = words.view(torch.float64) if like.is_floating_point() else words
    return numbers.to(like.dtype).view(like.shape)


def _tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_of(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors_of(getattr(value, field.name))


def _replaced(value: Any, sent: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return sent.get(id(value), value)
    if isinstance(value, tuple):
        return tuple(_replaced(part, sent) for part in value)
    if isinstance(value, dict):
        return {key: _replaced(part, sent) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _replaced(getattr(value, field.name), sent) for field in fields(value)})
    return value
