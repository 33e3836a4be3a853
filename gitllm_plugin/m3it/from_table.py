"""One's own pictures: a table of picture files, questions and answers becomes uniform rows."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pybase64

from gitllm_plugin.common.files import atomic_file
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.images import prepare_image
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.prompts import default_instruction

COLUMNS = ("image", "question", "answer", "instruction", "id", "split")
"""What a table may have. `image` and `answer` are needed; the rest may be missing or empty."""

SPLITS = ("train", "val", "test")

_SEPARATOR = "|"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MAX_REPORTED = 10


@dataclass(frozen=True)
class FromTable:
    """How a table is read.

    Attributes:
        images: the folder that picture files are relative to; None: the table's own.
        columns: the table's own names of :data:`COLUMNS`, where they are others.
        val: the share of pictures that become the validation split, where the table has no column `split`.
        test: the same for the test split.
        short_side: make pictures smaller whose shorter side is longer, in pixels; None: keep the files as they are.
    """

    images: Path | None = None
    columns: Mapping[str, str] | None = None
    val: float = 0.0
    test: float = 0.0
    short_side: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns or {}) - set(COLUMNS))
        if unknown:
            raise ConfigError(f"columns are given for {', '.join(unknown)}; a table has {', '.join(COLUMNS)}")
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ConfigError(f"shares are val {self.val} and test {self.test}; each is at least 0, their sum below 1")


def convert_table(table: str | Path, output: Path, settings: FromTable) -> dict[str, int]:
    """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, those that have rows.

    Pictures are dealt to the splits by a hash of their bytes: all rows about one picture are in one split, and the
    same picture is in the same split whenever it is converted again.

    Args:
        table: CSV, TSV or JSONL. A cell, or a list in JSONL, may name several pictures (or accepted answers); in CSV
            they are divided by ``|``.
        output: the folder to write into; files of the same name are replaced.
        settings: how.

    Returns:
        How many rows each split has.

    Raises:
        DataError: the table or a row of it cannot be used; every fault is counted, the first ten are shown, and
            nothing is written.
    """
    table = Path(table).expanduser()
    reader = _RowReader(table, settings)
    counts: Counter[str] = Counter()
    with ExitStack() as files:
        opened: dict[str, Any] = {}
        for place, record in _read_records(table):
            row = reader.read(place, record)
            # From the first fault on nothing is written any more, but all other rows are still looked at.
            if row is None or reader.problems:
                continue
            split, content = row
            if split not in opened:
                opened[split] = files.enter_context(atomic_file(output / f"{split}.jsonl"))
            opened[split].write(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))
            counts[split] += 1
        reader.raise_if_any()
        if not counts:
            raise DataError(f"{table} has no rows")
    return {split: counts[split] for split in SPLITS if counts[split]}


class _RowReader:
    """What reads records and collects what is wrong with them."""

    def __init__(self, table: Path, settings: FromTable) -> None:
        self.table, self.settings = table, settings
        self.folder = settings.images or table.parent
        self.names = {column: (settings.columns or {}).get(column, column) for column in COLUMNS}
        self.problems: list[str] = []
        self.place_of_id: dict[str, str] = {}

    def read(self, place: str, record: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Make split and row of a record; None where it cannot be used."""
        try:
            return self._read(place, record)
        except RowError as error:
            self.problems.append(str(error))
            return None

    def raise_if_any(self) -> None:
        if self.problems:
            listed = "\n  ".join(self.problems[:_MAX_REPORTED])
            more = len(self.problems) - _MAX_REPORTED
            rest = f"\n  ... and {more} more" if more > 0 else ""
            raise DataError(
                f"{self.table}: {len(self.problems)} rows cannot be used, nothing was written:\n  {listed}{rest}"
            )

    def _read(self, place: str, record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        images = [self._read_image(name, place) for name in self._list(record, "image", place)]
        answers = self._list(record, "answer", place)
        question = self._text(record, "question")
        # The line's number, which people find again in their table.
        row_id = self._text(record, "id") or place.rpartition(":")[2]
        if row_id in self.place_of_id:
            raise RowError("duplicate_id", f"the id {row_id!r} is that of {self.place_of_id[row_id]} too", place)
        self.place_of_id[row_id] = place
        texts = [pybase64.b64encode(image).decode("ascii") for image in images]
        row = {
            "id": row_id,
            "config": self.table.stem,
            "instruction": self._text(record, "instruction") or default_instruction(question),
            "inputs": question,
            "image_base64_str": texts[0] if len(texts) == 1 else texts,
            "outputs": answers[0] if len(answers) == 1 else answers,
        }
        return self._choose_split(record, images, place), row

    def _text(self, record: Mapping[str, Any], column: str) -> str:
        value = record.get(self.names[column])
        return "" if value is None else str(value).strip()

    def _list(self, record: Mapping[str, Any], column: str, place: str) -> list[str]:
        name = self.names[column]
        if name not in record:
            known = ", ".join(map(str, record)) or "none"
            raise RowError(
                "missing_key",
                f"there is no column {name!r}; the columns are {known}. Name yours with --columns {column}=NAME",
                place,
            )
        value = record[name]
        values = value if isinstance(value, list) else str("" if value is None else value).split(_SEPARATOR)
        values = [str(entry).strip() for entry in values]
        if not values or not all(values):
            raise RowError("wrong_value", f"the column {name!r} is empty", place)
        return values

    def _read_image(self, name: str, place: str) -> bytes:
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RowError("no_image", f"{path} cannot be read ({error.strerror})", place) from error
        # Decoded even where it stays as it is: a broken picture is told here, beside its row, not in training.
        return prepare_image(data, f"{place}: {path}", short_side=self.settings.short_side)

    def _choose_split(self, record: Mapping[str, Any], images: list[bytes], place: str) -> str:
        given = self._text(record, "split")
        if given:
            if given not in SPLITS:
                raise RowError("wrong_value", f"the split is {given!r}, expected one of {', '.join(SPLITS)}", place)
            return given
        # Of the bytes and not of the row: a picture that is asked about twice must not be in train and in val.
        digest = hashlib.sha256(b"".join(images)).digest()
        place_in_unit = int.from_bytes(digest[:8], "big") / 2**64
        if place_in_unit < self.settings.test:
            return "test"
        return "val" if place_in_unit < self.settings.test + self.settings.val else "train"


def _read_records(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read place and record of each row.

    Raises:
        DataError: the file cannot be read as a table.
    """
    suffix = table.suffix.lower()
    if suffix not in (*_DELIMITERS, ".jsonl"):
        raise DataError(f"{table}: a table is a file that ends in .csv, .tsv or .jsonl")
    # Spreadsheets write a byte order mark, and line breaks inside of cells.
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            if suffix == ".jsonl":
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        yield f"{table}:{line}", _parse(text, f"{table}:{line}")
                return
            reader = csv.DictReader(file, delimiter=_DELIMITERS[suffix])
            # `line_num`, for a cell with line breaks makes a record longer than a line.
            for record in reader:
                yield f"{table}:{reader.line_num}", {str(key): value for key, value in record.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from error


def _parse(text: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: a JSON {type(record).__name__} where an object is expected")
    return record
