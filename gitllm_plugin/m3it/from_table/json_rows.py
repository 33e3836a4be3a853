"""JSON: an object on each line, or a list of objects in one; each a question with its answer, or a conversation."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.from_table.columns import ColumnFinder
from gitllm_plugin.m3it.from_table.conversations import is_conversation, read_conversation, unread_keys
from gitllm_plugin.m3it.from_table.preferences import is_preference, read_preference, unread_of_preference
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.problems import RowError


def read_json(path: Path, text: str, whole: Any, finder: ColumnFinder, keeps_marks: bool = False) -> Iterator[Read]:
    """Read a file of JSON lines or, if that is what :func:`parse_whole` gave, of one list or object.

    Each is read by :func:`read_entry`.
    """
    if whole is not None:
        for number, entry in enumerate(whole if isinstance(whole, list) else [whole], start=1):
            yield read_entry(entry, number, f"{path}: row {number}", finder, keeps_marks)
        return
    # Not str.splitlines(), to which some characters within a text are line breaks.
    for line, content in enumerate(io.StringIO(text, newline=""), start=1):
        if not content.strip():
            continue
        place = f"{path}:{line}"
        try:
            yield read_entry(_parse(content), line, place, finder, keeps_marks)
        except ValueError as error:
            yield RowError("json", f"not JSON ({error})", place)


def parse_whole(path: Path, text: str) -> Any:
    """Parse a file ``.json`` that is a list or one object; None: it is none, and may have a row on each line.

    Raises:
        DataError: it begins as a list and is none.
    """
    if path.suffix.lower() != ".json":
        return None
    try:
        return _parse(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise DataError(f"{path}: not JSON ({error})") from error
        return None


def read_entry(entry: Any, number: int, place: str, finder: ColumnFinder, keeps_marks: bool = False) -> Read:
    """Read a row, whatever it is: a conversation, a preference, or a question with its answer.

    Args:
        entry, number, place: of the row.
        finder: of columns.
        keeps_marks: whether ``<image>`` stays in a conversation's texts.
    """
    if not isinstance(entry, dict):
        return RowError("json", f"a JSON {type(entry).__name__} where an object is expected", place)
    if is_conversation(entry) or is_preference(entry):
        try:
            if is_preference(entry):
                finder.pass_over(unread_of_preference(entry))
                return read_preference(entry, number, place, keeps_marks)
            finder.pass_over(unread_keys(entry))
            return read_conversation(entry, number, place, keeps_marks)
        except RowError as error:
            return error
    keys = list(entry)
    try:
        found = finder.find(keys, place)
    except RowError as error:
        return RowError(error.kind, error.message, place)
    cells = {column: entry[keys[index]] for column, index in found.items()}
    # Several captions are several texts to learn; of several answers to a question one is.
    return Record(str(number), place, cells, each=keys[found["answer"]].strip().casefold() == "caption")


def _parse(text: str) -> Any:
    """Parse JSON; numbers stay as they are written.

    Raises:
        ValueError: it is none, is nested too deeply, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object; only one would be read")
    return content
