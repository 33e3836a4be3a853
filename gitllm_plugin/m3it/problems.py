"""What can be wrong with a row of M3IT: kinds that are counted, and the error that carries one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gitllm_plugin.errors import DataError

KINDS = {
    "utf8": "the line is not UTF-8",
    "json": "the line is not a JSON object",
    "missing_key": "a key that the row needs is not there",
    "wrong_value": "a value is not of the kind that is expected",
    "no_image": "the image is null or empty where one is needed",
    "empty_answer": "there is no answer, or an empty one",
    "base64": "the image is not base64",
    "image": "the image's bytes are not an image, or are damaged",
    "image_truncated": "the image breaks off",
    "image_too_large": "the image has more pixels than are allowed",
    "too_long": "instruction and answer leave no room in the model's context, however short the question",
    "duplicate_id": "another row of the split has the same id",
    "shard": "the shard is missing, cannot be fetched or breaks off",
    "record": "the shard's record is not what was written",
}
"""Every kind of problem and what it means."""


class RowError(DataError):
    """A row cannot be used.

    Args:
        kind: one of KINDS.
        message: what was found, what is expected and what to do, without the place.
        place: where the row is (``path:line``); stands in front of the message.
    """

    def __init__(self, kind: str, message: str, place: str = ""):
        super().__init__(f"{place}: {message}" if place else message)
        self.kind = kind
        self.message = message
        self.place = place

    def __reduce__(self) -> tuple:
        # Exceptions are rebuilt from `args`, which hold the whole text only; workers of loaders send them pickled.
        return type(self), (self.kind, self.message, self.place)


@dataclass(frozen=True)
class Problem:
    """A row, or a text of one, that is left out, for reports.

    Attributes:
        file: where it is, relative to the root of a tree where there is one.
        line: line or row number, from 1; 0 for the file itself. Where the file is empty the message says the place.
        kind: one of KINDS.
        message: what was found, what is expected.
    """

    file: str
    line: int
    kind: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" if place else self.message


def summarize_problems(problems: Sequence[Problem]) -> str:
    """Say what is left out, by kind, with the first of each."""
    first = {problem.kind: problem for problem in reversed(problems)}
    counts = Counter(problem.kind for problem in problems)
    lines = [f"{counts[kind]:,} {kind} ({KINDS[kind]}), the first: {first[kind]}" for kind in sorted(counts)]
    return f"{len(problems):,} rows or texts are left out:\n  " + "\n  ".join(lines)
