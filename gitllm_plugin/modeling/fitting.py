"""Prompts that are too long: which part of one may be shortened, and by how much it is."""

from __future__ import annotations

import re
from collections.abc import Callable

from gitllm_plugin.errors import DataError

_MARK = re.compile(r"((?<=[.?!\n])[^.?!\n]{1,40}|\s\S+):\s*$")

Part = str | slice
"""Where a prompt may be shortened: the text of its question, or the place of that in the prompt."""


class TooLongError(DataError):
    """A prompt that does not fit, however short its question.

    Attributes:
        row: its place among the texts that were given.
        least: tokens that it takes at least, those of an answer included where there is one.
        allowed: tokens that it may take.
    """

    def __init__(self, message: str, row: int, least: int, allowed: int) -> None:
        super().__init__(message)
        self.row, self.least, self.allowed = row, least, allowed

    def __reduce__(self) -> tuple[type[TooLongError], tuple[str, int, int, int]]:
        return TooLongError, (str(self), self.row, self.least, self.allowed)


def place_of(prompt: str, part: Part | None) -> slice:
    """Find the part of a prompt that may be shortened.

    Args:
        prompt: the text.
        part: a place in it; or a text in it, with any white space around; None, or a text that is not there: all of
            the prompt but words with a colon at its end, which ask for the answer.
    """
    if isinstance(part, slice):
        start, stop, _ = part.indices(len(prompt))
        return slice(start, max(start, stop))
    mark = _MARK.search(prompt)
    end = mark.start() if mark else len(prompt)
    wanted = (part or "").strip()
    # In front of the mark first: a question may be a word of it.
    start = max(prompt.rfind(wanted, 0, end), prompt.rfind(wanted) if wanted not in prompt[:end] else -1)
    return slice(start, start + len(wanted)) if wanted and start >= 0 else slice(0, end)


def without(prompt: str, place: slice) -> str:
    """Give what of a prompt cannot be left out."""
    return prompt[: place.start] + prompt[place.stop :]


def shorten(prompt: str, place: slice, fits: Callable[[str], bool]) -> str:
    """Leave out the end of a part, as little of it as makes the prompt fit.

    Args:
        prompt: one that does not fit.
        place: the part.
        fits: whether a prompt does; that without the part.
    """
    before, part, after = prompt[: place.start], prompt[place], prompt[place.stop :]
    # By halving, in characters: `low` of them fit and `high` do not. Tokens cannot be cut without changing others.
    low, high = 0, len(part)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(before + part[:middle].rstrip() + after) else (low, middle)
    return before + part[:low].rstrip() + after
