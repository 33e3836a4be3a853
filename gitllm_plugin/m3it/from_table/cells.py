"""From a cell, whatever it is in JSON or parquet, to text: nothing is spelt out that was not meant as text."""

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from gitllm_plugin.m3it.from_table.settings import LISTS
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.rows import describe

SEPARATOR = "|"
"""Between several pictures or answers in a cell of text."""


def read_text(value: Any, column: str, place: str) -> str:
    """Read a cell that holds one text; null and nothing are empty.

    Raises:
        RowError: it is no text.
    """
    return "" if value is None else _scalar(value, column, place)


def read_list(value: Any, column: str, place: str, divided: bool) -> list[str]:
    """Read a cell that may hold several texts, at least one.

    Args:
        value: the cell.
        column: its name, for messages.
        place: of its row.
        divided: whether ``|`` stands between texts; where there are lists it is a character like others.

    Raises:
        RowError: it is empty, or something in it is, or is no text.
    """
    if isinstance(value, list):
        texts = [_scalar(entry, column, place) for entry in value]
    else:
        text = read_text(value, column, place)
        texts = [part.strip() for part in text.split(SEPARATOR)] if divided else [text]
    if not texts or not all(texts):
        what = "is empty" if not any(texts) else "has an empty entry"
        raise RowError("empty_answer" if column == "answer" else "wrong_value", f"the column {column!r} {what}", place)
    return texts


def _scalar(value: Any, column: str, place: str) -> str:
    """Make text of a text, or of what JSON writes without quotes."""
    if isinstance(value, str):
        return _checked(value, column, place).strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, (int, float, Decimal)) and math.isfinite(value):
        return repr(value) if isinstance(value, float) else str(value)
    advice = "leave the row or the key out, or write text"
    if isinstance(value, dict):
        inside = next((key for key in ("answer", "caption", "text") if key in value), None)
        advice = f"write what its {inside!r} says, as text" if inside else "write text"
    elif isinstance(value, list):
        advice = "write one text, or a row for each" if column not in LISTS else "write a list of texts"
    elif isinstance(value, (bytes, bytearray)):
        advice = "write text; a picture in the table itself has to become a file that the table names"
    found = "NaN or infinite" if isinstance(value, (float, Decimal)) else describe(value)
    raise RowError("wrong_value", f"the column {column!r} holds {found} where text is expected; {advice}", place)


def _checked(text: str, column: str, place: str) -> str:
    if "\0" in text:
        raise RowError("wrong_value", f"the column {column!r} has a NUL byte, which no text has; remove it", place)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        broken = ascii(text[error.start])
        raise RowError(
            "utf8", f"the column {column!r} has {broken}, half of a character; remove it or write the whole", place
        ) from error
    return text
