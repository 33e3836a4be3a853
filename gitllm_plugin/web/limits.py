"""What one request to the page may cost."""

from __future__ import annotations

from collections.abc import Sequence

from gitllm_plugin.errors import DataError

MOST_CHARACTERS = 20_000
"""Of a question, of an instruction, and of what was said before: more than is read, and few enough for a tokenizer."""

MOST_PIXELS = 50_000_000
"""Of a picture, and of all pictures of a question."""

MOST_FRAMES = 20_000
"""Of a video, which are decoded to find the few that are looked at: some ten minutes."""

MOST_UPLOADED = 64 * 2**20
"""Bytes of an uploaded file."""

MOST_KEPT = 2 * 2**30
"""Bytes of all uploads that are there at a time."""

MOST_BYTES = 2**20
"""Of any other request: a question and an instruction as JSON, however their characters are written."""

MOST_WAITING = 20
"""Questions in the queue; one is answered at a time."""

MOST_SECONDS = 120.0
"""Of the search for an answer; what is there by then is the answer."""

MOST_NEW_TOKENS = 200
MOST_BEAMS = 8


def check_texts(**texts: str | None) -> None:
    """Refuse texts that are too long, before they are tokenized.

    Args:
        texts: by what they are.

    Raises:
        DataError: naming the limit.
    """
    for what, text in texts.items():
        if text is not None and len(text) > MOST_CHARACTERS:
            raise DataError(
                f"The {what} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are taken. Shorten it."
            )


def check_pixels(sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse pictures that are too many pixels together.

    Raises:
        DataError: naming the limit.
    """
    pixels = sum(width * height for width, height in sizes)
    if pixels > MOST_PIXELS:
        raise DataError(
            f"The pictures have {pixels:,} pixels together; at most {MOST_PIXELS:,} are taken. Scale them down."
        )
