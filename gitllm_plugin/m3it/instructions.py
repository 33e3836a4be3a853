"""Which of a configuration's instructions a text gets.

M3IT has a list of instructions beside each configuration, and one is drawn per text. Here the draw is a hash of the
text's id and a seed: the same text gets the same one in every process, whichever part of the files is read, and in
shards as in the files they were made from.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import orjson

from gitllm_plugin.errors import DataError

FILE_NAMES = ("instructions.json", "instruction.json")


def draw(text_id: str, seed: int, choices: int) -> int:
    """A number below ``choices``, the same for the same text and seed. Each is about equally likely."""
    digest = hashlib.sha256(f"{seed}/{text_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % choices


def choose_instruction(text_id: str, seed: int, instructions: Sequence[str]) -> str:
    """The instruction that a text gets."""
    return instructions[draw(text_id, seed, len(instructions))]


def read_instructions(folder: Path) -> tuple[str, ...]:
    """The instructions that lie in a configuration's folder; none if there is no such file.

    Raises:
        DataError: if the file is not a JSON list of texts.
    """
    path = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    if path is None:
        return ()
    try:
        instructions = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}); expected a list of instructions. Download it again.") from error
    if not isinstance(instructions, list) or not all(isinstance(text, str) and text.strip() for text in instructions):
        raise DataError(f"{path} is not a list of texts, expected a list of instructions. Download it again.")
    return tuple(instructions)
