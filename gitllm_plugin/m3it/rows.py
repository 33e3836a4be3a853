"""From a row to a group: what is the same for rows of every form.

The uniform schema, which every M3IT configuration has once it is loaded, is one of the forms::

    {"instruction": str, "inputs": str, "image_base64_str": str | [str, ...], "outputs": str | [str, ...]}

with two optional keys, ``id`` (str or int) and ``config`` (str). Other keys are ignored.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gitllm_plugin.m3it.adapters import ADAPTERS, Beside, Draft
from gitllm_plugin.m3it.example import Group, Text
from gitllm_plugin.m3it.images import decode_base64
from gitllm_plugin.m3it.instructions import choose_instruction, draw
from gitllm_plugin.m3it.problems import RowError

READING_VERSION = 1
"""To be raised when rows are read otherwise than before: indexes and shards note it."""

ROW_SCHEMA = (
    'a row is one JSON object on one line: "instruction" (text), "inputs" (text, may be empty), '
    '"image_base64_str" (base64 text or a list of them), "outputs" (text, or a list of accepted answers), '
    'and optionally "id" (text or integer) and "config" (text)'
)


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of one file. It can be pickled.

    Attributes:
        config: the configuration of its rows.
        split: the split that they belong to.
        adapter: the form of its rows, a name of :data:`gitllm_plugin.m3it.adapters.ADAPTERS`.
        label: stands in the ids of rows that have none, between configuration and line; the split, and the file's
            name where a split has several.
        instructions: one is drawn for each text whose row has none.
        labels: class names (:class:`gitllm_plugin.m3it.adapters.Beside`).
        seed: of what is drawn.
        text_only: whether rows without an image are examples.
        row_config: whether a row's ``config`` goes before ``config``.
        first_number: added to line numbers to make the numbers of groups, where a split has several files.
    """

    config: str
    split: str
    adapter: str
    label: str
    instructions: tuple[str, ...] = field(default=(), repr=False)
    labels: Mapping[Any, str] = field(default_factory=dict, repr=False)
    seed: int = 0
    text_only: bool = False
    row_config: bool = False
    first_number: int = 0

    def read(
        self, content: bytes | Mapping[str, Any], line: int, image_step: Callable[[bytes], bytes] | None = None
    ) -> tuple[Group | None, list[RowError]]:
        """Reads one row.

        Args:
            content: the line of a JSONL file, or the columns of a table's row.
            line: its number, from 1.
            image_step: what to do with each image file, such as a check; it raises RowError for one that cannot be
                used.

        Returns:
            The row's group, without the texts that cannot be used, or None if nothing of it can be; and what is wrong.
        """
        try:
            row = parse_line(content) if isinstance(content, bytes) else content
            config = self._config_of(row)
            row_id = f"{config}/{self.label}/{line}"
            beside = Beside(self.labels, random.Random(draw(row_id, self.seed, 2**63)))
            parsed = ADAPTERS[self.adapter](row, beside)
            images = self._read_images(parsed.images)
            if image_step is not None:
                images = tuple(map(image_step, images))
        except RowError as error:
            return None, [error]
        texts, problems = [], []
        for number, draft in enumerate(parsed.drafts, start=1):
            try:
                text_id = _own_id(row) if self.adapter == "uniform" and "id" in row else row_id
                texts.append(self._make_text(text_id if len(parsed.drafts) == 1 else f"{row_id}/{number}", draft))
            except RowError as error:
                problems.append(error)
        if not texts:
            return None, problems
        return Group(config, self.split, self.first_number + line, images, tuple(texts)), problems

    def _config_of(self, row: Mapping[str, Any]) -> str:
        if not self.row_config or "config" not in row:
            return self.config
        if isinstance(row["config"], str) and row["config"]:
            return row["config"]
        raise RowError("wrong_value", f"'config' is {describe(row['config'])}, expected a name")

    def _read_images(self, images: Any) -> tuple[bytes, ...]:
        if images is None or images == "" or images == []:
            if self.text_only:
                return ()
            raise RowError("no_image", "the row has no image; allow_text_only: true (--allow-text-only) uses such rows")
        return tuple(_read_image(image) for image in (images if isinstance(images, list) else [images]))

    def _make_text(self, text_id: str, draft: Draft) -> Text:
        if not isinstance(draft.question, str):
            raise RowError("wrong_value", f"the question is {describe(draft.question)}, expected text")
        answers = _read_answers(draft.answers)
        instruction = draft.instruction
        if instruction is None:
            if not self.instructions:
                raise RowError(
                    "missing_key", "the row has no instruction, and no instructions.json lies beside its file"
                )
            instruction = choose_instruction(text_id, self.seed, self.instructions)
        if not isinstance(instruction, str):
            raise RowError("wrong_value", f"the instruction is {describe(instruction)}, expected text")
        if draft.complete is not None:
            instruction = draft.complete(instruction)
        return Text(text_id, instruction, draft.question, answers)


def parse_line(line: bytes) -> dict[str, Any]:
    """Reads one line of a JSONL file.

    Raises:
        RowError: of kind ``utf8`` or ``json``.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _explain_line(line, error) from error
    if not isinstance(row, dict):
        raise RowError("json", f"a JSON {type(row).__name__} where an object is expected")
    return row


def describe(value: Any) -> str:
    """A value for messages: its type and its beginning."""
    if value is None:
        return "null"
    if value in ("", [], {}):
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {_shorten(value)}"


def _explain_line(line: bytes, error: orjson.JSONDecodeError) -> RowError:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as broken:
        found = f"byte {line[broken.start]:#04x} at {broken.start}"
        return RowError("utf8", f"not UTF-8: {found}; the line starts with {_shorten(line)}")
    return RowError("json", f"not JSON: {error}; the line starts with {_shorten(line)}")


def _read_image(image: Any) -> bytes:
    """One image file: base64 text, or bytes as tables hold them, also as ``{"bytes": ..., "path": ...}``."""
    if isinstance(image, Mapping):
        image = image.get("bytes")
    if isinstance(image, bytes) and image:
        return image
    if image is None or image in ("", b""):
        raise RowError("no_image", f"one of the row's images is {describe(image)}")
    if not isinstance(image, str):
        raise RowError("wrong_value", f"an image is {describe(image)}, expected base64 text or a list of them")
    return decode_base64(image)


def _read_answers(answers: Any) -> tuple[str, ...]:
    if isinstance(answers, list) and not answers:
        raise RowError("empty_answer", "the list of answers is empty, expected at least one")
    answers = answers if isinstance(answers, list) else [answers]
    for answer in answers:
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            raise RowError("empty_answer", "an answer is empty; there is nothing to train on or to compare with")
        if not isinstance(answer, str):
            raise RowError("wrong_value", f"an answer is {describe(answer)}, expected text or a list of texts")
    return tuple(answers)


def _own_id(row: Mapping[str, Any]) -> str:
    row_id = row["id"]
    if isinstance(row_id, bool) or not isinstance(row_id, (str, int)) or row_id == "":
        raise RowError("wrong_value", f"'id' is {describe(row_id)}, expected text or an integer")
    return str(row_id)


def _shorten(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."
