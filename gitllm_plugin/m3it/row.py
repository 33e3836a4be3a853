"""The uniform M3IT row: what it must hold, and how it is read.

The schema is the one that every M3IT configuration has once it is loaded::

    {"instruction": str, "inputs": str, "image_base64_str": str | [str, ...], "outputs": str | [str, ...]}

with two optional keys, ``id`` (str or int) and ``config`` (str). Other keys are ignored.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from gitllm_plugin.m3it.images import decode_base64

ROW_SCHEMA = (
    'a row is one JSON object on one line: "instruction" (text), "inputs" (text, may be empty), '
    '"image_base64_str" (base64 text or a list of them), "outputs" (text, or a list of accepted answers), '
    'and optionally "id" (text or integer) and "config" (text)'
)

REQUIRED_KEYS = ("instruction", "inputs", "image_base64_str", "outputs")


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Reads one line of a JSONL file.

    Args:
        line: the line, with or without its end.

    Returns:
        The row and an empty text, or None and what is wrong with the line.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return None, f"not JSON: {error}; the line starts with {_shorten(line)}"
    if not isinstance(row, dict):
        return None, f"a JSON {type(row).__name__} where an object is expected"
    return row, ""


def find_problems(row: Mapping[str, Any], allow_text_only: bool) -> list[str]:
    """Says everything that is wrong with a row; an empty list means that it can be used.

    Args:
        row: the JSON object of one line.
        allow_text_only: whether a row may come without an image.
    """
    missing = [key for key in REQUIRED_KEYS if key not in row]
    if missing:
        return [f"missing {', '.join(map(repr, missing))}; the row has {', '.join(map(repr, row)) or 'no keys'}"]
    problems = [
        f"{key!r} is {_describe(row[key])}, expected text"
        for key in ("instruction", "inputs")
        if not isinstance(row[key], str)
    ]
    problems += _find_answer_problems(row["outputs"])
    problems += _find_image_problems(row["image_base64_str"], allow_text_only)
    if "config" in row and not (isinstance(row["config"], str) and row["config"]):
        problems.append(f"'config' is {_describe(row['config'])}, expected a name")
    row_id = row.get("id", 0)
    if isinstance(row_id, bool) or not isinstance(row_id, (str, int)) or row_id == "":
        problems.append(f"'id' is {_describe(row_id)}, expected text or an integer")
    return problems


def get_answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The accepted answers of a checked row, at least one."""
    outputs = row["outputs"]
    return (outputs,) if isinstance(outputs, str) else tuple(outputs)


def get_images(row: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The image files of a checked row; none where the row has no image (empty text, null, empty list).

    Raises:
        RowError: if one is not base64.
    """
    images = row["image_base64_str"] or []
    return tuple(decode_base64(image) for image in ([images] if isinstance(images, str) else images))


def _find_answer_problems(outputs: Any) -> list[str]:
    answers = outputs if isinstance(outputs, list) else [outputs]
    if not answers:
        return ["'outputs' is an empty list, expected at least one answer"]
    for answer in answers:
        if not isinstance(answer, str):
            return [f"'outputs' holds {_describe(answer)}, expected text or a list of texts"]
        if not answer.strip():
            return ["'outputs' holds an empty answer; there is nothing to train on or to compare with"]
    return []


def _find_image_problems(images: Any, allow_text_only: bool) -> list[str]:
    if images is None or images == "" or images == []:
        if allow_text_only:
            return []
        return ["the row has no image ('image_base64_str' is empty); set allow_text_only: true to use such rows"]
    for image in images if isinstance(images, list) else [images]:
        if not isinstance(image, str) or not image:
            return [f"'image_base64_str' holds {_describe(image)}, expected base64 text or a list of them"]
    return []


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    if value in ("", [], {}):
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {_shorten(value)}"


def _shorten(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."
