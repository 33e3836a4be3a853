"""A file of a server or a bucket, read whole in a bounded time, whatever is at the other end."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

from gitllm_plugin.errors import DataError

SECONDS = 60.0
"""In which there has to be an answer, and after it each further mebibyte."""

LOWEST_SPEED = 100_000
"""Bytes a second that have to come on the whole, besides."""

_CHUNK_BYTES = 2**20


def fetch(url: str, most_bytes: int) -> Iterator[bytes]:
    """Read a file piece by piece.

    Args:
        url: that fsspec opens.
        most_bytes: more are refused: whoever sends without an end fills neither disk nor memory.

    Raises:
        TimeoutError: there is no answer within :data:`SECONDS`, no further mebibyte within these, or less than
            :data:`LOWEST_SPEED`.
        DataError: it has more than ``most_bytes``.
        Exception: each file system has errors of its own.
    """
    began = since = time.monotonic()
    file = _within(SECONDS, f"no answer within {SECONDS:g} s", lambda: _open(url))
    # Closing ends the reading that was given up, too.
    with file:
        received = marked = 0
        while True:
            if received - marked >= _CHUNK_BYTES:
                marked, since = received, time.monotonic()
            whole = SECONDS + received / LOWEST_SPEED
            ends = min(since + SECONDS, began + whole)
            slow = f"{received:,} bytes came in {time.monotonic() - began:.3g} s, and then too few for too long"
            piece = _within(ends - time.monotonic(), slow, lambda: file.read(_CHUNK_BYTES))
            if not piece:
                return
            received += len(piece)
            if received > most_bytes:
                raise DataError(f"it has more than {most_bytes:,} bytes")
            yield piece


def _open(url: str) -> Any:
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # As one stream, not in ranges, which some servers do not know. aiohttp's own bound is 5 minutes for the whole,
        # too few for a large shard.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
        options = {"block_size": 0, "client_kwargs": {"timeout": timeout}}
    return fsspec.open(url, "rb", **options).open()  # pyright: ignore[reportAttributeAccessIssue]


def _within(seconds: float, otherwise: str, call: Callable[[], Any]) -> Any:
    """Call in a thread of its own, which is left alone where it takes longer: not every file system has time-outs.

    Raises:
        TimeoutError: it takes longer; says ``otherwise``.
        Exception: what ``call`` raises.
    """
    ended: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except Exception as error:  # noqa: BLE001 - raised below, where somebody waits for it
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = ended.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise TimeoutError(otherwise) from None
    if error is not None:
        raise error
    return result
