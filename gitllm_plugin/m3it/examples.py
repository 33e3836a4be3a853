"""Random access to the texts of M3IT's files.

A file is read whole once, when it is opened, so that every bad row is known before anything is trained. Kept in memory
are, per row, where it begins, its number, how many texts it has and how long, its configuration, how many images it
has and a hash of them: 72 bytes.
A row is read from its file again each time a text of it is asked for. Files are opened for each read, so an object of
this kind can be forked or pickled into the workers of a data loader.
"""

import hashlib
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pybase64
from tqdm import tqdm

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import ROW_SCHEMA, RowReader, cut_images
from gitllm_plugin.m3it.scan import KEY_BYTES, STEP_BYTES, Scan, ScannedFile, cut_file, find_duplicates, scan_slice
from gitllm_plugin.m3it.tables import get_version, open_table
from gitllm_plugin.m3it.tree import Source

MAX_REPORTED = 10
_SAMPLED = 64
_PROGRESS_FROM_BYTES = 64 * 2**20


class IndexedExamples:
    """The examples of several files: texts about images, in the order of files, rows and texts within a row.

    What cannot be used is not among them. Examples have numbers; those that show the same images are read together.

    Args:
        files: what was found in them.
    """

    def __init__(self, files: Iterable[ScannedFile]):
        self._files: list[ScannedFile] = []
        self._configs: list[str] = []
        self._file_of, self._config_of = array("l"), array("l")
        self._lines, self._positions = array("q"), array("q")
        self._ends = array("q")  # of each row: the number of examples up to its end
        self._text_bytes, self._image_counts = array("l"), array("l")
        self._keys = bytearray()
        self.problems: list[Problem] = []
        for file in files:
            self._append(file)
        self._last: tuple[int, Group] | None = None
        self._tables: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Group:
        """Read one example, as a group of one text.

        Raises:
            DataError: if the file is no longer what it was when it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.read([index % len(self)])

    def read(self, indices: Sequence[int]) -> Group:
        """Read examples that show the same images as one group.

        The images come from the row of the first; of the other rows only the texts are looked at.

        Args:
            indices: numbers of examples with the same :meth:`image_key`, at least one.

        Returns:
            The images and the texts, in the order that was asked for. Configuration, split and number are those of
            the first row.

        Raises:
            DataError: if a file is no longer what it was when it was opened.
        """
        first, _ = self._find(indices[0])
        group = self._read_whole(first)
        encoded: list[bytes] | None = None
        texts: list[Text] = []
        row, of_row = first, group.texts
        for index in indices:
            wanted, number = self._find(index)
            if wanted != row:
                # Encoded once for all rows; nearly always it is to the letter what stands in them.
                encoded = encoded or [pybase64.b64encode(image) for image in group.images]
                row, of_row = wanted, self._read_texts(wanted, encoded)
            texts.append(of_row[number])
        return Group(group.config, group.split, group.number, group.images, tuple(texts))

    def place_of(self, index: int) -> str:
        """Return where example ``index`` is, ``path:line``, for messages."""
        row, _ = self._find(index)
        return f"{self._files[self._file_of[row]].path}:{self._lines[row]}"

    def image_key(self, index: int) -> str:
        """Return the hash of example ``index``'s images, without reading it; empty where it has none."""
        row, _ = self._find(index)
        key = self._keys[KEY_BYTES * row : KEY_BYTES * (row + 1)]
        return key.hex() if any(key) else ""

    def config_of(self, index: int) -> str:
        """Return the configuration name of example ``index``, without reading it."""
        row, _ = self._find(index)
        return self._configs[self._config_of[row]]

    def longer_than(self, bound: Callable[[int], int]) -> Iterator[int]:
        """Give the numbers of examples that may have longer instructions and answers, without reading them.

        Args:
            bound: how many bytes instruction and answer may have beside so many images.
        """
        bounds: dict[int, int] = {}
        for row, (size, images) in enumerate(zip(self._text_bytes, self._image_counts, strict=True)):
            if images not in bounds:
                bounds[images] = bound(images)
            if size > bounds[images]:
                yield from range(self._ends[row - 1] if row else 0, self._ends[row])

    def fingerprint(self) -> str:
        """Sum up the examples, wherever their files are: rows, images, and the texts of some that are spread over all.

        Raises:
            DataError: if a file is no longer what it was when it was opened.
        """
        found = hashlib.sha256()
        for numbers in (self._lines, self._ends, self._keys):
            found.update(numbers)
        # Reading all texts would take as long as reading all files.
        for place in range(min(_SAMPLED, len(self))):
            (text,) = self[place * len(self) // min(_SAMPLED, len(self))].texts
            said = (text.instruction, text.question, text.answers, *([text.turns] if text.turns else []))
            said += () if text.rejected is None else (text.rejected,)
            found.update(repr(said).encode())
        return f"{len(self)} texts {found.hexdigest()[:12]}"

    def __getstate__(self) -> dict[str, Any]:
        # Neither open files nor a row of megabytes go to a worker.
        return {**self.__dict__, "_last": None, "_tables": {}}

    def _find(self, index: int) -> tuple[int, int]:
        """Find the row of an example, and which of its texts it is."""
        row = bisect_right(self._ends, index)
        return row, index - (self._ends[row - 1] if row else 0)

    def _read_whole(self, row: int) -> Group:
        """Read a row. The last one is kept: where captions of one image are items of their own, they come in turn."""
        if self._last is None or self._last[0] != row:
            group, _ = self._reader(row).read(self._read_content(row), self._lines[row])
            assert group is not None, "the row could be read when the file was opened"
            self._last = row, group
        return self._last[1]

    def _read_texts(self, row: int, encoded: Sequence[bytes]) -> tuple[Text, ...]:
        """Read the texts of a row whose images are known, also as base64."""
        content = self._read_content(row)
        if isinstance(content, bytes):
            content = cut_images(content, encoded)
        group, _ = self._reader(row).read(content, self._lines[row], with_images=False)
        assert group is not None, "the row could be read when the file was opened"
        return group.texts

    def _reader(self, row: int) -> RowReader:
        return self._files[self._file_of[row]].reader

    def _read_content(self, row: int) -> Any:
        """Read what stands in the file; that it is the file that was opened is looked at each time."""
        number = self._file_of[row]
        file = self._files[number]
        # Arrow and parquet files keep what they have open or read last.
        if number not in self._tables:
            self._tables[number] = open_table(file.path)
        table = self._tables[number]
        # Positions hold for one version of a file; the row of another would be half of two rows, or the wrong one.
        if get_version(table) != file.version:
            raise DataError(f"{file.path} changed after it was opened. Start again to read the new file.")
        return table.read(self._positions[row])

    def _append(self, file: ScannedFile) -> None:
        scan = file.scan
        # What was found is kept here once, not with the file: it goes to every worker.
        self._files.append(ScannedFile(file.path, file.reader, file.version, Scan()))
        self._file_of.extend([len(self._files) - 1] * len(scan.lines))
        self._lines.extend(scan.lines)
        self._positions.extend(scan.positions)
        # An instruction that is drawn may have been another when the file was read.
        drawn = max((len(text.encode()) for text in file.reader.instructions), default=0)
        self._text_bytes.extend(size + drawn for size in scan.text_bytes)
        self._image_counts.extend(scan.image_counts)
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


class JsonlExamples(IndexedExamples):
    """The examples of several files of uniform rows, in the order of files and rows.

    Args:
        sources: the files (:func:`gitllm_plugin.m3it.tree.find_sources`): JSONL, parquet, or folders that the
            ``datasets`` library saved.
        allow_text_only: whether rows may come without an image.
        limit: read only the first ``limit`` rows of each file, for a quick try; the rest is not checked.

    Raises:
        DataError: if a row cannot be used (every fault is counted, the first ten are shown with file, line
            and reason), if two rows have the same id, or if a file has no row.
    """

    def __init__(self, sources: Sequence[Source], *, allow_text_only: bool = False, limit: int | None = None):
        files, problems = [], []
        with _progress(sources) as progress:
            for source, label in zip(sources, _label_sources(sources), strict=True):
                file = _scan_file(source, label, allow_text_only, limit, progress)
                files.append(file)
                problems += file.scan.problems
                if not file.scan.rows:
                    message = "the file is empty; name a file that has rows, or remove it"
                    problems.append(Problem(str(source.path), 0, "wrong_value", message))
        problems += find_duplicates([(str(file.path), file.scan) for file in files])
        _raise_if_any(problems)
        super().__init__(files)


def _scan_file(source: Source, label: str, allow_text_only: bool, limit: int | None, progress: tqdm) -> ScannedFile:
    reader = RowReader(
        config=source.config or source.path.parent.name,
        split=label,
        adapter="uniform",
        label=label,
        text_only=allow_text_only,
        row_config=source.config is None,
    )
    version = get_version(open_table(source.path))
    scan = Scan()
    for piece in cut_file(source.path, str(source.path), reader, STEP_BYTES):
        # Images are not looked at, for a file is read at every start: a broken one is told when its item is read.
        scan.add(scan_slice(piece, look="base64", limit=None if limit is None else limit - scan.rows))
        progress.update(piece.end - piece.start)
    return ScannedFile(source.path, reader, version, scan)


def _raise_if_any(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    noun = "problem" if len(problems) == 1 else "problems"
    more = len(problems) - MAX_REPORTED
    lines = [
        f"{len(problems)} {noun} in the M3IT files:",
        *(
            str(problem) if problem.line else f"{problem.file}: {problem.message}"
            for problem in problems[:MAX_REPORTED]
        ),
        *([f"... and {more} more"] if more > 0 else []),
    ]
    raise DataError("\n  ".join(lines) + f"\nExpected: {ROW_SCHEMA}.")


def _progress(sources: Sequence[Source]) -> tqdm:
    total = sum(open_table(source.path).end for source in sources)
    # A bar that is gone at once only flickers, and one in a log file fills it.
    hidden = total < _PROGRESS_FROM_BYTES or not sys.stderr.isatty()
    return tqdm(total=total, unit="B", unit_scale=True, desc="Checking M3IT files", disable=hidden, file=sys.stderr)


def _label_sources(sources: Sequence[Source]) -> list[str]:
    """Make a short name for each file, for the ids of rows that have none: its stem, numbered where it repeats."""
    labels: list[str] = []
    for source in sources:
        stem = source.path.stem
        label, repeat = stem, 2
        # Two files of one name lie in different folders, and their rows must not share ids.
        while label in labels:
            label, repeat = f"{stem}-{repeat}", repeat + 1
        labels.append(label)
    return labels
