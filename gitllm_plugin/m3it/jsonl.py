"""Random access to the examples of uniform M3IT JSONL files.

A file is read whole once, when it is opened, so that every bad line is known before anything is trained.
Kept in memory are, per row, where it begins, its line number, its configuration and a hash of its images: 48
bytes. An example is read from its file again each time it is asked for. Files are opened for each read, so
an object of this kind can be forked or pickled into the workers of a data loader.
"""

import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import orjson
from tqdm import tqdm

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.example import Example, hash_images
from gitllm_plugin.m3it.files import Source
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.row import ROW_SCHEMA, find_problems, get_answers, get_images, parse_line

MAX_REPORTED = 10
_PROGRESS_FROM_BYTES = 64 * 2**20
_KEY_BYTES = 16


class JsonlExamples:
    """The examples of several JSONL files, in the order of files and lines. Blank lines are passed over.

    Args:
        sources: the files (:func:`gitllm_plugin.m3it.files.find_sources`).
        allow_text_only: whether rows may come without an image.
        limit: read only the first ``limit`` rows of each file, for a quick try; the rest is not checked.

    Raises:
        DataError: if a row cannot be used (every fault is counted, the first ten are shown with file, line
            and reason), if two rows have the same id, or if a file has no row.
    """

    def __init__(self, sources: Sequence[Source], *, allow_text_only: bool = False, limit: int | None = None):
        self._sources = list(sources)
        self._labels = _label_sources(self._sources)
        self._allow_text_only = allow_text_only
        self._limit = limit
        self._configs: list[str] = []
        self._source_of, self._config_of = array("l"), array("l")
        self._offsets, self._lines = array("q"), array("q")
        self._keys = bytearray()
        self._versions: list[tuple[int, int]] = []
        self._index()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        """Reads one example.

        Raises:
            DataError: if the file is no longer what it was when it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        number, line = self._source_of[index], self._lines[index]
        path = self._sources[number].path
        with open(path, "rb") as file:
            if _get_version(file) != self._versions[number]:
                raise DataError(f"{path} changed after it was opened. Start again to read the new file.")
            file.seek(self._offsets[index])
            row = orjson.loads(file.readline())
        config = self.config_of(index)
        return Example(
            id=self._make_id(row, number, config, line),
            config=config,
            instruction=row["instruction"],
            question=row["inputs"],
            answers=get_answers(row),
            images=get_images(row),
            location=f"{path}:{line}",
        )

    def image_key(self, index: int) -> str:
        """The hash of example ``index``'s images, without reading it; empty where it has none."""
        key = self._keys[_KEY_BYTES * index : _KEY_BYTES * (index + 1)]
        return key.hex() if any(key) else ""

    def config_of(self, index: int) -> str:
        """The configuration name of example ``index``, without reading it."""
        return self._configs[self._config_of[index]]

    def _make_id(self, row: dict, source: int, config: str, line: int) -> str:
        return str(row["id"]) if "id" in row else f"{config}/{self._labels[source]}/{line}"

    def _index(self) -> None:
        """Checks all files and notes where their rows begin."""
        check = _Check(self._allow_text_only)
        with _progress(self._sources) as progress:
            for number, source in enumerate(self._sources):
                with open(source.path, "rb") as file:
                    self._versions.append(_get_version(file))
                    lines = islice(_read_lines(file, progress), self._limit)
                    rows = sum(self._index_line(number, check, *line) for line in lines)
                if not rows:
                    check.add(str(source.path), "the file is empty; name a file that has rows, or remove it")
        check.raise_if_any()

    def _index_line(self, source: int, check: "_Check", line: int, offset: int, text: bytes) -> int:
        """Notes the row of a line if it can be used. Returns 1, the number of rows seen."""
        path = self._sources[source].path
        place = f"{path}:{line}"
        row, key = check.read(text, place)
        if row is not None:
            config = self._sources[source].config or row.get("config") or path.parent.name
            if check.is_new(self._make_id(row, source, config, line), place):
                self._append(source, config, line, offset, key)
        return 1

    def _append(self, source: int, config: str, line: int, offset: int, key: bytes) -> None:
        if config not in self._configs:
            self._configs.append(config)
        self._source_of.append(source)
        self._config_of.append(self._configs.index(config))
        self._lines.append(line)
        self._offsets.append(offset)
        self._keys += key


class _Check:
    """Checks rows and collects what is wrong, so that a user learns of many bad lines at once."""

    def __init__(self, allow_text_only: bool) -> None:
        self._allow_text_only = allow_text_only
        self._count = 0
        self._messages: list[str] = []
        self._place_of_id: dict[str, str] = {}

    def read(self, text: bytes, place: str) -> tuple[dict[str, Any] | None, bytes]:
        """The row of a line and the hash of its images, or None and nothing if it cannot be used."""
        row, problem = parse_line(text)
        problems = [problem] if row is None else find_problems(row, self._allow_text_only)
        if row is not None and not problems:
            try:
                return row, hash_images(get_images(row))
            except RowError as error:
                problems.append(error.message)
        self.add(place, "; ".join(problems))
        return None, b""

    def is_new(self, row_id: str, place: str) -> bool:
        """Whether no row before had this id."""
        first = self._place_of_id.setdefault(row_id, place)
        if first != place:
            self.add(place, f"id {row_id!r} is also that of {first}; ids must be unique in a split")
        return first == place

    def add(self, place: str, message: str) -> None:
        self._count += 1
        if len(self._messages) < MAX_REPORTED:
            self._messages.append(f"{place}: {message}")

    def raise_if_any(self) -> None:
        if not self._count:
            return
        noun = "problem" if self._count == 1 else "problems"
        more = self._count - len(self._messages)
        lines = [
            f"{self._count} {noun} in the M3IT files:",
            *self._messages,
            *([f"... and {more} more"] if more else []),
        ]
        raise DataError("\n  ".join(lines) + f"\nExpected: {ROW_SCHEMA}.")


def _read_lines(file: BinaryIO, progress: tqdm) -> Iterator[tuple[int, int, bytes]]:
    """Yields line number (from 1), byte offset and bytes of every line that is not blank."""
    offset = 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, offset, line
        offset += len(line)
        progress.update(len(line))


def _get_version(file: BinaryIO) -> tuple[int, int]:
    """Size and time of the last change: offsets hold for one version of a file only."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _progress(sources: Sequence[Source]) -> tqdm:
    total = sum(source.path.stat().st_size for source in sources)
    hidden = total < _PROGRESS_FROM_BYTES or not sys.stderr.isatty()
    return tqdm(total=total, unit="B", unit_scale=True, desc="Checking M3IT files", disable=hidden, file=sys.stderr)


def _label_sources(sources: Sequence[Source]) -> list[str]:
    """A short name for each file, for the ids of rows that have none: its stem, numbered where it repeats."""
    labels: list[str] = []
    for source in sources:
        stem = source.path.stem
        label, repeat = stem, 2
        while label in labels:
            label, repeat = f"{stem}-{repeat}", repeat + 1
        labels.append(label)
    return labels
