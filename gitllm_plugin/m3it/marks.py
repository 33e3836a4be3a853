"""``<image>`` in the words of a row: where a picture stands, for models of ``image_places: text``."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from gitllm_plugin.config.model import IMAGE_MARK


def with_marks(parts: Sequence[str | None], between: str) -> str:
    """Write the parts of a message as one text, each picture on a line of its own, as LLaVA's data has them.

    Args:
        parts: texts, and None for a picture.
        between: what stands between two texts.
    """
    written = ""
    for place, part in enumerate(parts):
        lines = place and None in (part, parts[place - 1])
        written += ("\n" if lines else between if place else "") + (IMAGE_MARK if part is None else part)
    return written


def count_marks(text: Any) -> int:
    """Count the pictures of a text; none of what is no text."""
    return text.count(IMAGE_MARK) if isinstance(text, str) else 0


def shown_so_far(questions: Sequence[Any]) -> list[int | None]:
    """Count, for each question of a conversation, the pictures that stand in it and in those before it.

    Returns:
        None for those that are behind all pictures.
    """
    counts = list(accumulate(map(count_marks, questions)))
    return [None if count == counts[-1] else count for count in counts]


def pictures_so_far(pictures: Sequence[Any], questions: Sequence[str]) -> Sequence[Any]:
    """Give the pictures that the questions of a conversation have shown so far; all, where none says where one is."""
    shown = sum(map(count_marks, questions))
    return pictures[:shown] if shown else pictures
