"""Messages of a conversation, in OpenAI's form and transformers': what each says, and where its pictures are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pybase64

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.marks import with_marks
from gitllm_plugin.m3it.pictures import Picture

MOST_BYTES = 50_000_000
"""Of a picture that is fetched."""

SECONDS = 30.0
"""In which a picture that is fetched has to be there."""

_KEYS = ("image", "url", "path", "base64")
"""Where a part of the type ``image`` has its picture, by transformers' names."""


@dataclass(frozen=True)
class Turn:
    """A message.

    Attributes:
        role: of who says it.
        text: its texts, one a line.
        pictures: as they are given: a path, an address, or the picture itself.
    """

    role: str
    text: str
    pictures: tuple[Picture, ...]


def read_turn(message: Mapping[str, Any], places_pictures: bool = False) -> Turn:
    """Read one message. No picture is opened.

    Args:
        message: with ``role`` and ``content``.
        places_pictures: whether ``<image>`` is written where a picture stands.

    Raises:
        DataError: its content is neither a text nor a list of parts, or a part is neither text nor picture.
    """
    texts: list[str | None] = []
    pictures = []
    for part in _parts(message):
        if part.get("type") != "text":
            pictures.append(_picture_of(part))
            texts += [None] * places_pictures
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise DataError(f"a part of type text has no text: {message!r:.120}")
    return Turn(str(message.get("role")), with_marks([text for text in texts if text != ""], "\n"), tuple(pictures))


def turns_before(messages: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
    """Give questions and answers before the last message, which is a question.

    Raises:
        DataError: user and assistant do not take turns, or the user does not speak last.
    """
    roles = [message.role for message in messages]
    if roles != [*["user", "assistant"] * (len(messages) // 2), "user"]:
        shown = ", ".join(roles[:8]) or "none"
        raise DataError(
            f"these messages are of: {shown}; a conversation has one of the role user and one of the role assistant in "
            "turns, the user's first and last, and an instruction as one of the role system: join what one says at a "
            "time"
        )
    texts = [message.text for message in messages]
    return tuple(zip(texts[:-1:2], texts[1::2], strict=True))


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise DataError(f"the content of a message is a text or a list of parts, not {content!r:.80}")
    return list(content)


def _picture_of(part: Mapping[str, Any]) -> Picture:
    kind = part.get("type")
    if kind == "image_url":
        address = part.get("image_url")
        part = {"url": address.get("url") if isinstance(address, Mapping) else address}
    elif kind != "image":
        raise DataError(f"a part of type {kind!r}; a message has parts of the types text, image and image_url")
    given = {key: part[key] for key in _KEYS if part.get(key) is not None}
    if len(given) != 1:
        raise DataError(f"a part of type {kind} has its picture as one of {', '.join(_KEYS)}, not as {sorted(part)}")
    ((key, picture),) = given.items()
    if key == "base64" and not str(picture).startswith("data:"):
        return f"data:;base64,{picture}"
    return picture


def is_data(address: Any) -> bool:
    """Tell an address that is the picture itself: ``data:image/png;base64,...``."""
    return isinstance(address, str) and address.startswith("data:")


def is_web(address: Any) -> bool:
    """Tell an address of the web from a path that begins like one."""
    return isinstance(address, str) and address.startswith(("http://", "https://"))


def data_of(address: str, name: str) -> bytes:
    """Give the bytes that an address is.

    Raises:
        DataError: they are not base64; names ``name``.
    """
    head, found, data = address.partition(",")
    if not head.endswith(";base64") or not found:
        raise DataError(f"{name} is {address[:40]!r}; write its bytes as data:image/png;base64,...")
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError as error:
        raise DataError(f"{name} is not base64 ({error})") from error


def fetch(address: str, name: str) -> bytes:
    """Fetch a picture of the web, in at most :data:`SECONDS` and of at most :data:`MOST_BYTES`.

    Raises:
        DataError: there is none, or it is larger or slower; names ``name``.
    """
    import httpx  # as transformers, which needs it

    began, content = time.monotonic(), bytearray()
    try:
        plain = {"Accept-Encoding": "identity"}  # so that what comes is as large as it seems
        with httpx.stream("GET", address, headers=plain, timeout=SECONDS, follow_redirects=True) as reply:
            reply.raise_for_status()
            for piece in reply.iter_raw():
                content += piece
                if len(content) > MOST_BYTES:
                    raise DataError(f"{name} has more than {MOST_BYTES:,} bytes, the most that are fetched")
                if time.monotonic() - began > SECONDS:
                    raise DataError(f"{name} took longer than {SECONDS:g} s: {len(content):,} bytes came by then")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataError(f"{name} cannot be fetched: {type(error).__name__}: {error}") from error
    return bytes(content)
