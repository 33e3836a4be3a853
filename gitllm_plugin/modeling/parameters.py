"""What a model is made of: one line for each kind of parameter, repeated layers together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gitllm_plugin.tables import Block, Table

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass
class ParameterRow:
    """Parameters that differ in the number of their layer alone.

    Attributes:
        name: dotted name; ``{0-11}`` stands for the layers that have it.
        shape: of each.
        count: numbers in all of them.
        trained: whether they are trained.
        dtype: their number format.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    trained: bool
    dtype: str


def parameter_rows(model: nn.Module) -> list[ParameterRow]:
    """List the parameters of ``model`` in their order; a tied weight is counted once."""
    rows: dict[tuple, list[list[int]]] = {}
    for name, parameter in model.named_parameters():
        pattern = _NUMBER.sub("#", name)
        key = (pattern, tuple(parameter.shape), parameter.requires_grad, str(parameter.dtype).removeprefix("torch."))
        rows.setdefault(key, []).append([int(number) for number in _NUMBER.findall(name)])
    return [
        ParameterRow(_with_ranges(pattern, numbers), shape, len(numbers) * _size(shape), trained, dtype)
        for (pattern, shape, trained, dtype), numbers in rows.items()
    ]


def describe_parameters(rows: Sequence[ParameterRow]) -> list[Block]:
    """Make a table with a row for each, and the totals."""
    cells = [
        (row.name, "x".join(map(str, row.shape)), f"{row.count:,}", "yes" if row.trained else "", row.dtype)
        for row in rows
    ]
    total, trained = sum(row.count for row in rows), sum(row.count for row in rows if row.trained)
    return [
        Table(("parameter", "shape", "count", "trained", "dtype"), cells, numbers=(1, 2)),
        f"{trained:,} of {total:,} parameters are trained ({100 * trained / max(total, 1):.2f}%)",
    ]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _with_ranges(pattern: str, numbers: list[list[int]]) -> str:
    """Replace each ``#`` of the pattern by the numbers that stood there."""
    pieces = pattern.split("#")
    named = pieces[0]
    for position, piece in enumerate(pieces[1:]):
        seen = sorted({found[position] for found in numbers})
        named += _range(seen) + piece
    return named


def _range(seen: list[int]) -> str:
    if len(seen) == 1:
        return str(seen[0])
    whole = seen == list(range(seen[0], seen[-1] + 1))
    return f"{{{seen[0]}-{seen[-1]}}}" if whole else "{" + ",".join(map(str, seen)) + "}"
