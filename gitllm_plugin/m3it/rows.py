"""From a row to a group: what is the same for rows of every form.

M3IT has a list of instructions beside each configuration, and one is drawn per text. Here the draw is a hash of the
text's id and a seed: the same text gets the same one in every process, whichever slice of the files is read, and in
shards as in the files they were made from.

The uniform schema, which every M3IT configuration has once it is loaded, is one of the forms::

    {"instruction": str, "inputs": str, "image_base64_str": str | [str, ...], "outputs": str | [str, ...]}

with four optional keys, ``id`` (str or int), ``config`` (str), ``rejected`` (str, an answer that is worse) and, for
conversations, ``turns`` (a list of ``[question, answer]`` that follow on ``inputs`` and ``outputs``). Other keys are
ignored.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.adapters import ADAPTERS, Adapter, Beside, Draft
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.images import decode_base64
from gitllm_plugin.m3it.problems import RowError

READING_VERSION = 2
"""To be raised when rows are read otherwise than before: indexes and shards note it."""

INSTRUCTION_FILES = ("instructions.json", "instruction.json")
"""Under which names a configuration's instructions lie beside its files."""

_CUT_FROM_BYTES = 2048

ROW_SCHEMA = (
    'a row is one JSON object on one line: "instruction" (text), "inputs" (text, may be empty), '
    '"image_base64_str" (base64 text or a list of them), "outputs" (text, or a list of accepted answers), '
    'and optionally "id" (text or integer), "config" (text), "rejected" (a worse answer, text) and "turns" (a list of '
    "[question, answer], the rest of a conversation)"
)


@dataclass(frozen=True)
class RowReader:
    """What the rows of one file are read with. It can be pickled.

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

    @property
    def form(self) -> Adapter:
        """The facts about the form of its rows."""
        return ADAPTERS[self.adapter]

    def read(
        self,
        content: bytes | Mapping[str, Any],
        line: int,
        image_step: Callable[[bytes], bytes] | None = None,
        with_images: bool = True,
    ) -> tuple[Group | None, list[RowError]]:
        """Read one row.

        Args:
            content: the line of a JSONL file, or the columns of a table's row.
            line: its number, from 1.
            image_step: what to do with each image file, such as a check; it raises RowError for one that cannot be
                used.
            with_images: False leaves images out of the group, and they are neither decoded nor checked: for rows that
                were read before.

        Returns:
            The row's group, without the texts that cannot be used, or None if nothing of it can be; and what is wrong.
        """
        try:
            row = parse_line(content) if isinstance(content, bytes) else content
            config = self._config_of(row)
            row_id = f"{config}/{self.label}/{line}"
            # The place of the row, not its own id, seeds what is drawn: shards that were made before hold these draws.
            beside = Beside(self.labels, random.Random(draw(row_id, self.seed, 2**63)))
            parsed = self.form.read(row, beside)
            images = self._read_images(parsed.images) if with_images else ()
            # Before the texts: where an image is broken the row is told once, whatever is wrong with its texts.
            if image_step is not None:
                images = tuple(map(image_step, images))
        except RowError as error:
            return None, [error]
        texts, problems = [], []
        for number, draft in enumerate(parsed.drafts, start=1):
            try:
                text_id = _own_id(row) if self.form.has_ids and "id" in row else row_id
                # Numbered by all drafts, those that cannot be used included: ids stay when a caption is mended.
                text_id = text_id if len(parsed.drafts) == 1 else f"{text_id}/{number}"
                texts.append(self._make_text(text_id, config, draft))
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

    def _make_text(self, text_id: str, config: str, draft: Draft) -> Text:
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
        # As of a row of one question, the first may be empty: the instruction says it all.
        turns = tuple((_said(asked, number == 0), _said(answer)) for number, (asked, answer) in enumerate(draft.turns))
        rejected = _read_rejected(draft.rejected, answers)
        return Text(text_id, config, instruction, draft.question, answers, turns, rejected, draft.images)


def _said(words: Any, may_be_empty: bool = False) -> str:
    if not isinstance(words, str) or not (words.strip() or may_be_empty):
        raise RowError("wrong_value", f"an earlier turn has {describe(words)}, expected text")
    return words


def parse_line(line: bytes) -> dict[str, Any]:
    """Read one line of a JSONL file.

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


def cut_images(line: bytes, encoded: Sequence[bytes]) -> bytes:
    """Cut images that are known out of a line of JSON, so that no time goes into parsing them again.

    Args:
        line: of a JSONL file.
        encoded: base64 of the images.

    Returns:
        The line with ``""`` where it had one of the images; as it was where it has them in another form, or where they
        are so small that nothing is gained.
    """
    for text in encoded:
        # A search for all of a text of 100 KB takes longer than parsing it does; its first bytes find it as well, and
        # that nothing but the image stands between the quotes is looked at after.
        start = line.find(b'"' + text[:_CUT_FROM_BYTES]) + 1
        end = start + len(text)
        if start and len(text) >= _CUT_FROM_BYTES and line[start:end] == text and line[end : end + 1] == b'"':
            line = line[:start] + line[end:]
    return line


def describe(value: Any) -> str:
    """Describe a value for messages: its type and its beginning."""
    if value is None:
        return "null"
    if value in ("", [], {}):
        return f"an empty {type(value).__name__}"
    return f"{type(value).__name__} {_shorten(value)}"


def draw(text_id: str, seed: int, choices: int) -> int:
    """Draw a number below ``choices``, the same for the same text and seed. Each is about equally likely."""
    # Not Python's hash(), which is another one in each process.
    digest = hashlib.sha256(f"{seed}/{text_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % choices


def choose_instruction(text_id: str, seed: int, instructions: Sequence[str]) -> str:
    """Return the instruction that a text gets."""
    return instructions[draw(text_id, seed, len(instructions))]


def read_instructions(folder: Path) -> tuple[str, ...]:
    """Read the instructions that lie in a configuration's folder; none if there is no such file.

    Raises:
        DataError: if the file is not a JSON list of texts.
    """
    path = next((folder / name for name in INSTRUCTION_FILES if (folder / name).is_file()), None)
    if path is None:
        return ()
    try:
        instructions = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}); expected a list of instructions. Download it again.") from error
    if not isinstance(instructions, list) or not all(isinstance(text, str) and text.strip() for text in instructions):
        raise DataError(f"{path} is not a list of texts, expected a list of instructions. Download it again.")
    return tuple(instructions)


def _explain_line(line: bytes, error: orjson.JSONDecodeError) -> RowError:
    # orjson tells of bytes that are not UTF-8 as of any other fault; Python says which byte.
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as broken:
        found = f"byte {line[broken.start]:#04x} at {broken.start}"
        return RowError("utf8", f"not UTF-8: {found}; the line starts with {_shorten(line)}")
    return RowError("json", f"not JSON: {error}; the line starts with {_shorten(line)}")


def _read_image(image: Any) -> bytes:
    """Read one image file: base64 text, or bytes as tables hold them, also as ``{"bytes": ..., "path": ...}``."""
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


def _read_rejected(rejected: Any, answers: tuple[str, ...]) -> str | None:
    if rejected is None:
        return None
    if not isinstance(rejected, str) or not rejected.strip():
        raise RowError(
            "wrong_value", f"'rejected' is {describe(rejected)}, expected a text that is worse than the answer"
        )
    if rejected.strip() in (answer.strip() for answer in answers):
        raise RowError(
            "wrong_value", f"'rejected' is {describe(rejected)}, which is an accepted answer: nothing to prefer"
        )
    return rejected


def _own_id(row: Mapping[str, Any]) -> str:
    row_id = row["id"]
    # A bool is an int to Python.
    if isinstance(row_id, bool) or not isinstance(row_id, (str, int)) or row_id == "":
        raise RowError("wrong_value", f"'id' is {describe(row_id)}, expected text or an integer")
    return str(row_id)


def _shorten(value: Any, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."
