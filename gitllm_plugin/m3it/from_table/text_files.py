"""Files of text in whatever encoding: a byte order mark or the user says which, and nothing is guessed."""

import codecs
from pathlib import Path

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.table_kinds import kind_by_bytes

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ADVICE = "Save it as UTF-8, or say what it is, as in --encoding cp1252 (Windows), shift_jis or utf-16-le"


def read_text_file(path: Path, encoding: str | None) -> str:
    """Read a file of text.

    Args:
        path: the file.
        encoding: what it is in where it has no byte order mark; None: UTF-8.

    Raises:
        DataError: it cannot be read, or is in another encoding; with the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read as a table: {error.strerror or error}") from error
    if other := kind_by_bytes(data):
        raise DataError(f"{path} is not text but {other}")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    name = marked or encoding or "utf-8"
    try:
        text = data.decode(name)
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = data[:start].decode(name, "replace").count("\n") + 1
        found = f"byte {data[start]:#04x}" if start < len(data) else "the end of the file"
        raise DataError(f"{path}:{line}: {found} is not {name}. {_ADVICE}") from error
    # UTF-16 of Latin letters without its mark is UTF-8 too, with a NUL in every second place.
    if text.count("\0") > len(text) // 4:
        raise DataError(f"{path}: every second byte or so is NUL, as in UTF-16 without a mark. {_ADVICE}")
    return text
