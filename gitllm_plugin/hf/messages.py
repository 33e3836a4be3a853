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
from gitllm_plugin.inference.messages import data_of, fetch, is_data, is_web, read_turn
from gitllm_plugin.m3it.pictures import Picture


def is_batch(conversation: Sequence[Any]) -> bool:
    """Tell several conversations from the messages of one."""
    return bool(conversation) and isinstance(conversation[0], (list, tuple))


def read_question(messages: Sequence[Mapping[str, Any]]) -> Question:
    """Read what is asked: text and pictures of the user's message, and the system's as the instruction.

    Raises:
        DataError: another question or an answer is among the messages, a part is neither text nor picture, or a picture
            of the web cannot be fetched.
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
    instruction = "\n".join(read_turn(message).text for message in messages if message.get("role") == "system")
    asked = read_turn(said[0])
    return Question(tuple(map(_loaded, asked.pictures)), asked.text, instruction or None)


def _loaded(picture: Picture) -> Picture:
    """Give the bytes of a picture that is an address, and all others as they are."""
    if is_data(picture):
        return data_of(picture, "a picture")
    return fetch(picture, f"the picture {picture[:60]!r}") if is_web(picture) else picture
