"""One's own pictures: a table of picture files, questions and answers, or a folder, becomes uniform rows."""

from gitllm_plugin.m3it.from_table.convert import convert_dataset, convert_table, name_of, tables_of
from gitllm_plugin.m3it.from_table.settings import COLUMNS, SPLITS, FromTable, parse_columns

__all__ = [
    "COLUMNS",
    "SPLITS",
    "FromTable",
    "convert_dataset",
    "convert_table",
    "name_of",
    "parse_columns",
    "tables_of",
]
