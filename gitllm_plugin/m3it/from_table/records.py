"""What all kinds of tables are read as: records, in the order of the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gitllm_plugin.m3it.problems import RowError


@dataclass(frozen=True)
class Record:
    """A row as it is in its table.

    Attributes:
        name: becomes its id where it has none: the line or number of the row, or a file.
        place: for messages, ``path:line`` where there are lines.
        cells: by the names of :data:`gitllm_plugin.m3it.from_table.settings.COLUMNS`, those that there are.
        divided: whether ``|`` in a cell stands between several values.
        each: whether each of the answers is learnt from, as captions are, and not the first alone.
    """

    name: str
    place: str
    cells: Mapping[str, Any]
    divided: bool = False
    each: bool = False


Read = Record | RowError
"""A row, or why there is none."""
