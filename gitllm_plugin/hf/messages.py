"""Conversations in transformers' form, as far as a model that answers one question about pictures has them::

[
    {"role": "system", "content": [{"type": "text", "text": "Answer in one word."}]},      the instruction; optional
    {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what color is it?"}]},
]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.m3it.pictures import Picture

_KEYS = ("image", "url", "path", "base64")
"""Where a part of a message has its picture, by transformers' names."""


def is_batch(conversation: Sequence[Any]) -> bool:
    """Tell several conversations from the messages of one."""
    return bool(conversation) and isinstance(conversation[0], (list, tuple))


def read_question(messages: Sequence[Mapping[str, Any]]) -> Question:
    """Read what is asked: text and pictures of the user's message, and the system's as the instruction.

    Raises:
        DataError: another question or an answer is among the messages, or a part is neither text nor picture.
    """
    if not isinstance(messages, Sequence) or not all(isinstance(each, Mapping) for each in messages):
        raise DataError(f"a conversation is a list of messages with 'role' and 'content', not {messages!r:.80}")
    said = [message for message in messages if message.get("role") != "system"]
    if len(said) != 1 or said[0].get("role") != "user":
        roles = ", ".join(str(message.get("role")) for message in said) or "none"
        raise DataError(
            f"a GIT-LLM answers one question of its user; these messages are of: {roles}. Give one message of the "
            "role user, with its pictures and its question, and an instruction as one of the role system"
        )
    instruction = "\n".join(_text_of(message) for message in messages if message.get("role") == "system")
    pictures = tuple(_picture_of(part) for part in _parts(said[0]) if part.get("type") != "text")
    return Question(pictures, _text_of(said[0]), instruction or None)


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise DataError(f"the content of a message is a text or a list of parts, not {content!r:.80}")
    return list(content)


def _text_of(message: Mapping[str, Any]) -> str:
    texts = [part.get("text") for part in _parts(message) if part.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"a part of type text has no text: {message!r:.120}")
    return "\n".join(text for text in texts if isinstance(text, str))


def _picture_of(part: Mapping[str, Any]) -> Picture:
    kind = part.get("type")
    if kind == "image_url":
        address = part.get("image_url")
        part = {"url": address.get("url") if isinstance(address, Mapping) else address}
    elif kind != "image":
        raise DataError(f"a part of type {kind!r}; a message has parts of the types text, image and image_url")
    given = [part[key] for key in _KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"a part of type {kind} has its picture as one of {', '.join(_KEYS)}, not as {sorted(part)}")
    if part.get("base64") is not None or (
        isinstance(given[0], str) and given[0].startswith(("http://", "https://", "data:"))
    ):
        return _fetched(given[0])
    return given[0]


def _fetched(address: str) -> Picture:
    from transformers.image_utils import load_image

    try:
        return load_image(address)
    except Exception as error:  # the network's and the decoder's own
        raise DataError(f"the picture {address[:60]!r} cannot be read: {error}") from error
