"""Files of rows: JSONL, Arrow as the ``datasets`` library saves it, and parquet. Each can be cut into slices.

A slice is a range of positions: bytes of a JSONL file, rows of the others. Every row is in exactly one of the slices
that a file is cut into, and where it is cut does not depend on who reads it.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.errors import DataError, first_line

_CHUNK_BYTES = 8 * 2**20
_LINE_BYTES = 2**17  # more than most lines have


@dataclass(frozen=True)
class RawRow:
    """A row as it is in its file.

    Attributes:
        line: its number, from 1.
        position: where it can be read again.
        content: the line of a JSONL file, or the columns of a table's row.
    """

    line: int
    position: int
    content: bytes | Mapping[str, Any]


class JsonlFile:
    """A file with one JSON object on each line. Blank lines are passed over but count as lines."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def files(self) -> list[Path]:
        """The files on disk."""
        return [self.path]

    @property
    def end(self) -> int:
        """The position behind the last row."""
        return self.path.stat().st_size

    def cut(self, target_bytes: int) -> list[tuple[int, int]]:
        """Cut it into slices of about so many bytes: first position, and the position behind the last one."""
        return [(start, min(start + target_bytes, self.end)) for start in range(0, self.end, target_bytes)]

    def first_lines(self, starts: list[int]) -> list[int]:
        """Count, for each start of a slice in rising order, the first line that begins there or behind.

        The file is read up to the last start, as fast as it comes, for the line breaks are counted.
        """
        lines, counted, numbers = 1, 0, []
        with open(self.path, "rb") as file:
            for start in starts:
                # A line begins behind each line break, so one at start - 1 begins a line of this slice.
                while counted < start - 1:
                    chunk = file.read(min(_CHUNK_BYTES, start - 1 - counted))
                    if not chunk:
                        raise DataError(f"{self.path} became shorter while it was read. Start again.")
                    lines += chunk.count(b"\n")
                    counted += len(chunk)
                numbers.append(lines + 1 if start > 0 else 1)
        return numbers

    def rows(self, start: int, end: int, first_line: int) -> Iterator[RawRow]:
        """Read the rows that begin in a slice."""
        with open(self.path, "rb") as file:
            position = start
            # From the byte before: if that ends a line, the slice begins with a line of its own, else the line that
            # it cuts belongs to the slice before.
            if start > 0:
                file.seek(start - 1)
                position += len(file.readline()) - 1
            line = first_line
            while position < end:
                content = file.readline()
                if not content:
                    return
                if content.strip():
                    yield RawRow(line, position, _without_mark(content, position))
                position += len(content)
                line += 1

    def read(self, position: int) -> bytes:
        """Read the row at a position."""
        # A buffered file's readline() takes ten times as long for lines of 100 KB.
        file, pieces, end = os.open(self.path, os.O_RDONLY), [], position
        try:
            while piece := os.pread(file, _LINE_BYTES, end):
                stop = piece.find(b"\n") + 1
                pieces.append(piece[:stop] if stop else piece)
                if stop:
                    break
                end += len(piece)
        finally:
            os.close(file)
        return _without_mark(b"".join(pieces), position)


class _Table:
    """What Arrow and parquet files have in common: positions are rows."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def end(self) -> int:
        """The number of rows."""
        raise NotImplementedError

    def first_lines(self, starts: list[int]) -> list[int]:
        """Return the row number, from 1, of each start."""
        return [start + 1 for start in starts]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # not the open file


class ArrowFolder(_Table):
    """A split as ``Dataset.save_to_disk`` of the ``datasets`` library writes it: Arrow files and ``state.json``."""

    @cached_property
    def files(self) -> list[Path]:
        """The files on disk.

        Raises:
            DataError: if ``state.json`` is not as the library writes it.
        """
        path = self.path / "state.json"
        try:
            state = orjson.loads(path.read_bytes())
            paths = [self.path / item["filename"] for item in state["_data_files"]]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not what Dataset.save_to_disk writes ({type(error).__name__}: {error}). Save it again."
            ) from error
        if state.get("_indices_files"):
            raise DataError(f"{self.path} was saved with indices by an old version of datasets. Save it again.")
        return paths

    @cached_property
    def _table(self) -> Any:
        pyarrow = _import_pyarrow(self.path)
        tables = []
        for path in self.files:
            try:
                with pyarrow.memory_map(str(path)) as source:  # the table keeps it; nothing is read into memory yet
                    tables.append(pyarrow.ipc.open_stream(source).read_all())
            except (pyarrow.ArrowException, ValueError, OSError) as error:
                raise DataError(
                    f"{path} is not an Arrow file ({first_line(error)}). Save or download it again."
                ) from error
        with _told_as_damage(self.path, "its files together"):
            return pyarrow.concat_tables(tables)

    @property
    def end(self) -> int:
        """The number of rows."""
        return self._table.num_rows

    @property
    def schema_metadata(self) -> Mapping[bytes, bytes]:
        """What is written beside its columns."""
        return self._table.schema.metadata or {}

    def cut(self, target_bytes: int) -> list[tuple[int, int]]:
        """Cut it into slices of about so many bytes: first position, and the position behind the last one."""
        if not self.end:
            return []
        # Rows are taken to be of one size: to know their sizes, all would have to be read.
        size = sum(path.stat().st_size for path in self.files)
        rows = max(1, self.end * target_bytes // max(1, size))
        return [(start, min(start + rows, self.end)) for start in range(0, self.end, rows)]

    def rows(self, start: int, end: int, first_line: int) -> Iterator[RawRow]:
        """Read the rows of a slice."""
        for position in range(start, end):
            yield RawRow(first_line + position - start, position, self.read(position))

    def read(self, position: int) -> Mapping[str, Any]:
        """Read the row at a position.

        Raises:
            DataError: its bytes are damaged.
        """
        with _told_as_damage(self.path, f"row {position + 1}"):
            row = self._table.slice(position, 1)
            # Of one row it costs nothing beside reading it; offsets that lead elsewhere would end the process.
            row.validate(full=True)
            return row.to_pylist()[0]


class ParquetFile(_Table):
    """A parquet file. A row is read with all rows of its row group: fast in order, slow at random."""

    @property
    def files(self) -> list[Path]:
        """The files on disk."""
        return [self.path]

    @cached_property
    def _file(self) -> Any:
        pyarrow = _import_pyarrow(self.path)
        parquet = importlib.import_module("pyarrow.parquet")
        try:
            return parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, ValueError, OSError) as error:  # names of columns may be no UTF-8
            raise DataError(
                f"{self.path} is not a parquet file ({first_line(error)}). Download or convert it again."
            ) from error

    @property
    def columns(self) -> list[str]:
        """The names of its columns, in order."""
        return self._file.schema_arrow.names

    @property
    def schema_metadata(self) -> Mapping[bytes, bytes]:
        """What is written beside its columns."""
        return self._file.schema_arrow.metadata or {}

    @cached_property
    def _group_starts(self) -> list[int]:
        """The first row of each row group, and the number of rows."""
        metadata = self._file.metadata
        starts = [0]
        for group in range(metadata.num_row_groups):
            starts.append(starts[-1] + metadata.row_group(group).num_rows)
        return starts

    @property
    def end(self) -> int:
        """The number of rows."""
        return self._file.metadata.num_rows

    def cut(self, target_bytes: int) -> list[tuple[int, int]]:
        """Cut it into slices of whole row groups, as many as fit in so many bytes."""
        metadata, ranges, size = self._file.metadata, [], 0
        for group, (start, end) in enumerate(zip(self._group_starts, self._group_starts[1:], strict=False)):
            size += metadata.row_group(group).total_byte_size
            if ranges and size <= target_bytes:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
                size = metadata.row_group(group).total_byte_size
        return ranges

    def rows(self, start: int, end: int, first_line: int) -> Iterator[RawRow]:
        """Read the rows of a slice; a few are in memory at a time."""
        groups = [group for group, first in enumerate(self._group_starts[:-1]) if start <= first < end]
        position = start
        # Rows have images of up to a megabyte, and every process reads a slice at the same time: few in memory.
        batches = self._file.iter_batches(batch_size=16, row_groups=groups)
        while True:
            with _told_as_damage(self.path, f"behind row {position}"):
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            for row in rows:
                yield RawRow(first_line + position - start, position, row)
                position += 1

    def read(self, position: int) -> Mapping[str, Any]:
        """Read the row at a position."""
        group = next(number for number, end in enumerate(self._group_starts[1:]) if position < end)
        cached = self.__dict__.get("_last_group")
        # Rows of a group can only be read together; texts of neighbouring rows are asked for one after another.
        if cached is None or cached[0] != group:
            with _told_as_damage(self.path, f"row group {group + 1}"):
                cached = self.__dict__["_last_group"] = (group, self._file.read_row_group(group))
        with _told_as_damage(self.path, f"row {position + 1}"):
            return cached[1].slice(position - self._group_starts[group], 1).to_pylist()[0]


Table = JsonlFile | ArrowFolder | ParquetFile


def open_table(path: Path) -> Table:
    """Open the rows of a file or folder, by what it is: ``state.json`` in it, ``.parquet``, else JSONL."""
    if path.is_dir():
        return ArrowFolder(path)
    return ParquetFile(path) if path.suffix == ".parquet" else JsonlFile(path)


def size_of(table: Table) -> int:
    """Return the size of a table's files in bytes."""
    return sum(size for size, _ in get_version(table))


def get_version(table: Table) -> list[tuple[int, int]]:
    """Return size and time of the last change of each file: positions hold for one version only.

    Raises:
        DataError: a file is missing.
    """
    try:
        return [(status.st_size, status.st_mtime_ns) for status in map(os.stat, table.files)]
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{table.path}: a file is missing ({error}). Download or save it again.") from error


@contextmanager
def _told_as_damage(path: Path, where: str) -> Iterator[None]:
    """Tell whatever a library raises for damaged bytes, and it has many names for it, as one error with the place.

    Raises:
        DataError: the block raised something.
    """
    try:
        yield
    except Exception as error:
        raise DataError(f"{path}, {where}: damaged ({first_line(error)}). Download or save it again.") from error


def _without_mark(content: bytes, position: int) -> bytes:
    """Remove the byte order mark that some editors put at the start of a file."""
    # Anywhere else these bytes are a character, if an invisible one.
    return content.removeprefix(b"\xef\xbb\xbf") if position == 0 else content


def _import_pyarrow(path: Path) -> Any:
    # Not a requirement: JSONL, which the hub has, needs none.
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{path}: reading it needs pyarrow; pip install pyarrow, or use the JSONL files") from error
    return pyarrow
