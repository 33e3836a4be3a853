"""Conversations in transformers' form, as far as a model that reads pictures in front of all text has them::

[
    {"role": "system", "content": [{"type": "text", "text": "Answer in one word."}]},      the instruction; optional
    {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what color is it?"}]},
    {"role": "assistant", "content": "red"},                       what was said before, of a model that learnt so
    {"role": "user", "content": "and how large?"},
]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Question
from gitllm_plugin.inference.messages import data_of, fetch, is_data, is_web, read_turn, turns_before
from gitllm_plugin.m3it.pictures import Picture


def is_batch(conversation: Sequence[Any]) -> bool:
    """Tell several conversations from the messages of one."""
    return bool(conversation) and isinstance(conversation[0], (list, tuple))


def read_question(messages: Sequence[Mapping[str, Any]], places_pictures: bool = False) -> Question:
    """Read what is asked: text of the user's last message, what was said before, all pictures, and the instruction.

    Args:
        messages: of one conversation.
        places_pictures: whether pictures stand where the messages have them; else they stand in front.

    Raises:
        DataError: user and assistant do not take turns, the user does not speak last, a picture stands elsewhere than
            in the user's first message or, where they have places, in one of the user's, a part is neither text nor
            picture, or a picture of the web cannot be fetched.
    """
    if not isinstance(messages, Sequence) or not all(isinstance(each, Mapping) for each in messages):
        raise DataError(f"a conversation is a list of messages with 'role' and 'content', not {messages!r:.80}")
    read = [read_turn(message, places_pictures) for message in messages]
    said = [turn for turn in read if turn.role != "system"]
    before = turns_before(said)
    if any(turn.pictures for turn in read if turn.role != "user"):
        raise DataError("a message that is not the user's has a picture: give it in one of the user's")
    if not places_pictures and any(turn.pictures for turn in said[1:]):
        raise DataError("pictures stand in front of a conversation: give all of them in the user's first message")
    instruction = "\n".join(turn.text for turn in read if turn.role == "system")
    return Question(
        tuple(_loaded(picture) for turn in said for picture in turn.pictures),
        said[-1].text,
        instruction or None,
        before,
    )


def _loaded(picture: Picture) -> Picture:
    """Give the bytes of a picture that is an address, and all others as they are."""
    if is_data(picture):
        return data_of(picture, "a picture")
    return fetch(picture, f"the picture {picture[:60]!r}") if is_web(picture) else picture
