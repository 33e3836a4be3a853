"""From paths to records: which kind of table each is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.from_table.coco import CocoFile, is_coco, read_coco
from gitllm_plugin.m3it.from_table.columns import ColumnFinder
from gitllm_plugin.m3it.from_table.delimited import read_delimited
from gitllm_plugin.m3it.from_table.folders import read_folder
from gitllm_plugin.m3it.from_table.json_rows import parse_whole, read_json
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.from_table.settings import FromTable, split_of_name
from gitllm_plugin.m3it.from_table.text_files import read_text_file
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.table_kinds import JSON, PARQUET, SPREADSHEETS, TABLES
from gitllm_plugin.m3it.tables import ParquetFile


def read_records(
    tables: Sequence[Path], settings: FromTable, is_picture: Callable[[str], bool], tell: Callable[[str], None]
) -> Iterator[Read]:
    """Read the rows of tables, or of a folder of pictures; of what cannot be a row, why.

    Args:
        tables: files, or one folder. If the names of several files say different splits, their rows are in these.
        settings: how.
        is_picture: whether a text is likely to name a picture.
        tell: is told what is not read.

    Raises:
        ConfigError: the settings do not go with the tables.
        DataError: nothing of one can be read.
    """
    for table in tables:
        if not table.exists():
            raise DataError(f"{table} cannot be read as a table: there is no such file or folder")
        if len(tables) > 1 and table.is_dir():
            raise ConfigError(f"{table} is a folder; give it alone, or several files of tables")
    named = [split_of_name(PurePath(table.name)) for table in tables]
    splits = named if len(set(named)) > 1 else [""] * len(tables)
    coco: list[CocoFile] = []
    finder = ColumnFinder(settings.columns)
    for table, split in zip(tables, splits, strict=True):
        for read in _read_table(table, split, settings, finder, coco, is_picture, tell):
            if len(tables) == 1 or isinstance(read, RowError):
                yield read
                continue
            given = read.cells.get("split") or split
            yield replace(read, name=f"{table.stem}/{read.name}", cells={**read.cells, "split": given})
    names = str(tables[0]) if len(tables) == 1 else f"{tables[0]} and {len(tables) - 1} more"
    if coco:
        yield from read_coco(coco, settings, tell)
    if len(coco) < len(tables) and not tables[0].is_dir():
        finder.check_given(names)
    if unread := finder.unread():
        tell(f"{names}: columns that are not read: {', '.join(unread)}; read are {', '.join(finder.wanted)}")


def _read_table(
    table: Path,
    split: str,
    settings: FromTable,
    finder: ColumnFinder,
    coco: list[CocoFile],
    is_picture: Callable[[str], bool],
    tell: Callable[[str], None],
) -> Iterator[Read]:
    """Read one; a file of COCO's is put to the others of its kind, which are read together."""
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
    if suffix == PARQUET:
        yield from _read_parquet(table, finder)
        return
    text = read_text_file(table, settings.encoding)
    if not text.strip():
        raise DataError(f"{table} has no rows: the file is empty")
    whole = parse_whole(table, text)
    if is_coco(whole):
        coco.append(CocoFile(table, whole, split))
    elif suffix in JSON:
        yield from read_json(table, text, whole, finder, settings.keeps_marks)
    else:
        yield from read_delimited(table, text, finder, is_picture, tell)


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
