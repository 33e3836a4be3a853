"""Random access to the examples of M3IT's files.

A file is read whole once, when it is opened, so that every bad row is known before anything is trained. Kept in memory
are, per row, where it begins, its number, how many examples it has, its configuration and a hash of its images: 56
bytes. A row is read from its file again each time an example of it is asked for. Files are opened for each read, so an
object of this kind can be forked or pickled into the workers of a data loader.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.example import Example, Group
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import KEY_BYTES, Scan
from gitllm_plugin.m3it.tables import get_version, open_table


@dataclass(frozen=True)
class ScannedFile:
    """A file whose rows were read once.

    Attributes:
        path: the file, or the folder that ``datasets`` saved.
        reader: of its rows.
        version: size and time of the last change when it was read.
        scan: what was found.
    """

    path: Path
    reader: RowReader
    version: list[tuple[int, int]]
    scan: Scan


class IndexedExamples:
    """The examples of several files, in the order of files and rows. What cannot be used is not among them.

    Args:
        files: what was found in them.
    """

    def __init__(self, files: Iterable[ScannedFile]):
        self._files: list[ScannedFile] = []
        self._configs: list[str] = []
        self._file_of, self._config_of = array("l"), array("l")
        self._lines, self._positions = array("q"), array("q")
        self._ends = array("q")  # of each row: the number of examples up to its end
        self._keys = bytearray()
        self.problems: list[Problem] = []
        self._rows: Counter[str] = Counter()
        for file in files:
            self._append(file)
        self._last: tuple[int, Group] | None = None
        self._tables: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        """Reads one example.

        Raises:
            DataError: if the file is no longer what it was when it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        row, number = self._find(index % len(self))
        group = self._read(row)
        file = self._files[self._file_of[row]]
        return group.examples(f"{file.path}:{self._lines[row]}")[number]

    def image_key(self, index: int) -> str:
        """The hash of example ``index``'s images, without reading it; empty where it has none."""
        row, _ = self._find(index)
        key = self._keys[KEY_BYTES * row : KEY_BYTES * (row + 1)]
        return key.hex() if any(key) else ""

    def config_of(self, index: int) -> str:
        """The configuration name of example ``index``, without reading it."""
        row, _ = self._find(index)
        return self._configs[self._config_of[row]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None, "_tables": {}}

    def _find(self, index: int) -> tuple[int, int]:
        """The row of an example, and which of its texts it is."""
        row = bisect_right(self._ends, index)
        return row, index - (self._ends[row - 1] if row else 0)

    def _read(self, row: int) -> Group:
        """Reads a row. The last one is kept: the captions of one image are asked for in turn."""
        if self._last is not None and self._last[0] == row:
            return self._last[1]
        number = self._file_of[row]
        file = self._files[number]
        if number not in self._tables:
            self._tables[number] = open_table(file.path)
        table = self._tables[number]
        if get_version(table) != file.version:
            raise DataError(f"{file.path} changed after it was opened. Start again to read the new file.")
        group, _ = file.reader.read(table.read(self._positions[row]), self._lines[row])
        assert group is not None, "the row could be read when the file was opened"
        self._last = row, group
        return group

    def _append(self, file: ScannedFile) -> None:
        scan = file.scan
        # What was found is kept here once, not with the file.
        self._files.append(ScannedFile(file.path, file.reader, file.version, Scan()))
        self._file_of.extend([len(self._files) - 1] * len(scan.lines))
        self._lines.extend(scan.lines)
        self._positions.extend(scan.positions)
        self._keys.extend(scan.keys)
        numbers = {config: self._number_of(config) for config in dict.fromkeys(scan.configs)}
        self._config_of.extend(numbers[config] for config in scan.configs)
        total = len(self)
        for texts in scan.texts:
            total += texts
            self._ends.append(total)
        self.problems += scan.problems

    def _number_of(self, config: str) -> int:
        if config not in self._configs:
            self._configs.append(config)
        return self._configs.index(config)


def find_duplicates(scans: Sequence[tuple[str, Scan]]) -> list[Problem]:
    """Rows whose id another row before them has.

    Args:
        scans: the name of each file of a split, and what was found in it; only rows that may have ids of their own
            are looked at.
    """
    first: dict[str, str] = {}
    problems = []
    for name, scan in scans:
        for line, row_id in zip(scan.lines, scan.ids, strict=bool(scan.ids)):
            place = f"{name}:{line}"
            other = first.setdefault(row_id, place)
            if other != place:
                message = f"id {row_id!r} is also that of {other}; ids must be unique in a split"
                problems.append(Problem(name, line, "duplicate_id", message))
    return problems
