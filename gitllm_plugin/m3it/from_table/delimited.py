"""CSV and TSV, strictly: a quote that is not closed or a comma too many is told, for either takes text away."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gitllm_plugin.m3it.from_table.columns import ColumnFinder
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.table_kinds import DELIMITERS

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars (|)"}


def read_delimited(
    path: Path, text: str, finder: ColumnFinder, is_picture: Callable[[str], bool], tell: Callable[[str], None]
) -> Iterator[Read]:
    """Read the rows of a CSV or TSV table.

    Args:
        path: the file, for its ending and for messages.
        text: what it holds.
        finder: finds the columns.
        is_picture: whether a cell's text is likely to be a picture's file.
        tell: is told what was passed over.

    Raises:
        RowError: the header cannot be used.
    """
    # The bound is there against broken files, which `strict` finds as well; a long caption is none.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    delimiter = _find_delimiter(text, DELIMITERS[path.suffix.lower()], finder)
    if delimiter != DELIMITERS[path.suffix.lower()]:
        tell(f"{path}: read with {_NAMES[delimiter]} between cells, as its header has them")
    rows = _read_rows(path, text, delimiter)
    header: list[str] | None = None
    found: dict[str, int] = {}
    nothing = 0
    for line, cells in rows:
        if isinstance(cells, RowError):
            if header is None:
                raise cells
            yield cells
        elif not any(cell.strip() for cell in cells):
            nothing += 1
        elif header is None:
            header, found = cells, _find_columns(_named(cells), finder, f"{path}:{line}")
        else:
            place = f"{path}:{line}"
            fault = _fault(header, cells, delimiter, is_picture)
            if fault:
                yield RowError("wrong_value", fault, place)
            else:
                record = {column: cells[index] for column, index in found.items()}
                yield Record(str(line), place, record, divided=True)
    if nothing:
        tell(f"{path}: rows without any text, passed over: {nothing:,}")


def _read_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str] | RowError]]:
    """Read the first line and the cells of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError("wrong_value", _explain(error, line, reader.line_num), f"{path}:{line}")
            continue
        if cells:
            yield line, cells


def _find_columns(header: list[str], finder: ColumnFinder, place: str) -> dict[str, int]:
    try:
        return finder.find(header, place)
    except RowError as error:
        if len(header) > 1:
            raise
        known = ", ".join(_NAMES.values())
        raise RowError(
            error.kind, f"{error.message}. The header is one cell: it may be divided by {known}", place
        ) from error


def _find_delimiter(text: str, usual: str, finder: ColumnFinder) -> str:
    """Choose what cuts the first line into the columns that are needed; what is usual, if nothing does."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "").replace("\0", "")
    for delimiter in (usual, *(name for name in _NAMES if name != usual)):
        cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        if finder.fits(cells):
            return delimiter
    return usual


def _named(header: Sequence[str]) -> list[str]:
    """Take the columns at the end off that have no name, which spreadsheets write for cells that were once filled."""
    last = max((index for index, name in enumerate(header) if name.strip()), default=-1)
    return list(header[: last + 1])


def _fault(
    header: Sequence[str], cells: Sequence[str], delimiter: str, is_picture: Callable[[str], bool]
) -> str | None:
    """Say what of a row's text would be lost or stand where it does not belong; None where nothing is."""
    named = len(_named(header))
    filled = len(_named(cells))
    if filled > named:
        return (
            f"{filled} cells where the header has {named}; a text that has {delimiter!r} in it stands in quotes, "
            'as "a, b", and a quote in it is doubled'
        )
    if len(cells) < named:
        comment = "; remove comments" if cells[0].lstrip().startswith("#") else ""
        return f"{len(cells)} cells where the header has {named}: is a line break or a delimiter missing{comment}?"
    for name, cell in zip(header, cells, strict=False):
        if "\n" not in cell and "\r" not in cell:
            continue
        for line in cell.splitlines():
            parts = [part.strip(' "') for part in line.split(delimiter)]
            if len(parts) > 1 and any(map(is_picture, parts)):
                return (
                    f"the cell {name!r} holds what looks like another row, {line[:60]!r}: is a quote not closed? "
                    "Close it, or double a quote that belongs to the text; if all is right, write JSON lines"
                )
    return None


def _explain(error: csv.Error, first: int, last: int) -> str:
    lines = f"lines {first} to {last} are read as one row" if last > first else "the row ends in a quote"
    if "end of data" in str(error):
        return f"a quote is opened and never closed, so that {lines}. Close it, or double one that belongs to the text"
    if "expected after" in str(error):
        return (
            f"text stands behind the quote that closes a cell ({lines if last > first else 'in this line'}). Double a "
            'quote that belongs to the text, and put the whole cell in quotes: "a ""red"" car"'
        )
    return f"not a row of a table ({error})"
