"""From a path to records: which kind of table it is."""

from collections.abc import Callable, Iterator
from pathlib import Path

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.from_table.columns import ColumnFinder
from gitllm_plugin.m3it.from_table.delimited import read_delimited
from gitllm_plugin.m3it.from_table.folders import read_folder
from gitllm_plugin.m3it.from_table.json_rows import read_json
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.from_table.settings import FromTable
from gitllm_plugin.m3it.from_table.text_files import read_text_file
from gitllm_plugin.m3it.table_kinds import JSON, PARQUET, SPREADSHEETS, TABLES
from gitllm_plugin.m3it.tables import ParquetFile


def read_records(
    table: Path, settings: FromTable, is_picture: Callable[[str], bool], tell: Callable[[str], None]
) -> Iterator[Read]:
    """Read the rows of a table, or of a folder of pictures; of what cannot be a row, why.

    Args:
        table: a file or a folder.
        settings: how.
        is_picture: whether a text is likely to name a picture.
        tell: is told what is not read.

    Raises:
        ConfigError: the settings do not go with the table.
        DataError: nothing of it can be read.
    """
    if not table.exists():
        raise DataError(f"{table} cannot be read as a table: there is no such file or folder")
    suffix = table.suffix.lower()
    if table.is_dir():
        if settings.columns or settings.images:
            raise ConfigError(f"{table} is a folder, which has no columns and its pictures in itself; leave both out")
        yield from read_folder(table, settings.encoding, tell)
        return
    if suffix in SPREADSHEETS:
        raise DataError(f"{table}: a spreadsheet's own file is not read; save the sheet as CSV (UTF-8) and give that")
    if suffix not in TABLES:
        known = ", ".join(TABLES[:-1])
        raise DataError(f"{table}: a table is a folder of pictures or a file that ends in {known} or {TABLES[-1]}")
    finder = ColumnFinder(settings.columns)
    if suffix == PARQUET:
        yield from _read_parquet(table, finder)
    else:
        text = read_text_file(table, settings.encoding)
        if not text.strip():
            raise DataError(f"{table} has no rows: the file is empty")
        if suffix in JSON:
            yield from read_json(table, text, finder, settings.keeps_marks)
        else:
            yield from read_delimited(table, text, finder, is_picture, tell)
    finder.check_given(str(table))
    unread = finder.unread()
    if unread:
        tell(f"{table}: columns that are not read: {', '.join(unread)}; read are {', '.join(finder.wanted)}")


def _read_parquet(table: Path, finder: ColumnFinder) -> Iterator[Read]:
    file = ParquetFile(table)
    header = file.columns
    found = finder.find(header, str(table))
    try:
        for row in file.rows(0, file.end, 1):
            assert not isinstance(row.content, bytes)
            cells = {column: row.content[header[index]] for column, index in found.items()}
            yield Record(str(row.line), f"{table}:{row.line}", cells)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataError(f"{table} cannot be read to its end ({error}). Write or download it again") from error
