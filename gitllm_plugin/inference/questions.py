"""Rows of a file of questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.m3it.images import decode_base64
from gitllm_plugin.m3it.rows import parse_line

BASE64 = "image_base64_str"
_IMAGE, _IMAGES = "image", "images"
_FORM = (
    'a row is {"image": path} or {"images": [paths]} or {"image_base64_str": text or a list of them}, with '
    '"question" (or "inputs"; without it the picture is described) and, if need be, "instruction"'
)


def read_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | DataError]:
    """Read the lines of a JSONL file; empty ones are passed over, and what is no row gives its error."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse_line(line)
        except DataError as error:
            yield DataError(f"line {number}: {error}")


def count_rows(path: Path) -> int:
    """Count the rows of a file."""
    with open(path, "rb") as lines:
        return sum(1 for line in lines if line.strip())


def read_question(row: Mapping[str, Any], folder: Path) -> Question:
    """Read what a row asks.

    Args:
        row: see the message of the error.
        folder: that paths are relative to.

    Raises:
        DataError: not of this form.
    """
    given = [key for key in (_IMAGE, _IMAGES, BASE64) if row.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"the row has {' and '.join(given) or 'no picture'}; {_FORM}")
    key = given[0]
    values = row[key] if isinstance(row[key], list) else [row[key]]
    if not values or not all(isinstance(value, str) for value in values) or (key == _IMAGE and len(values) != 1):
        raise DataError(f"{key!r} is {row[key]!r:.100}; {_FORM}")
    if not all(value.strip() for value in values):
        raise DataError(f"{key!r} is {row[key]!r:.100}, which is empty; {_FORM}")
    texts = [row.get("question", row.get("inputs", "")), row.get("instruction")]
    if not isinstance(texts[0], str) or not isinstance(texts[1], str | None):
        raise DataError(f"question and instruction are {texts!r:.200}, expected texts; {_FORM}")
    pictures = tuple(decode_base64(v) if key == BASE64 else folder / Path(v).expanduser() for v in values)
    return Question(pictures, *texts)
