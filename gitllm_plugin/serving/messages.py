"""Requests and replies in the form of OpenAI's chat completions, as far as a model of pictures has them."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

import pybase64
from pydantic import BaseModel, ConfigDict, Field

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.pipeline import Decoding, Question
from gitllm_plugin.m3it.pictures import read_pixels


class ImageUrl(BaseModel):
    """Where a picture is: in the request itself."""

    url: str
    detail: str | None = None


class Part(BaseModel):
    """A part of a message: a text or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """A message; the system's is the instruction."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class ChatRequest(BaseModel):
    """A request. Fields that are not here are refused, so that none is ignored in silence."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    messages: list[Message] = Field(min_length=1, max_length=100)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None


def read_request(
    request: ChatRequest, most_pixels: int, most_characters: int, most_new_tokens: int
) -> tuple[Question, Decoding]:
    """Read what is asked: the text and the pictures of the user's message, and the system's as the instruction.

    Raises:
        DataError: earlier questions, no picture, one that cannot be read or is too large, a text that is too long, or
            an answer that would be.
    """
    said = [message for message in request.messages if message.role in ("user", "assistant")]
    if len(said) != 1 or said[0].role != "user":
        raise DataError(
            f"{len(said)} messages of user and assistant; the model answers one question at a time: send one message "
            "of the user, with the picture and the question"
        )
    system = [_text_of(message) for message in request.messages if message.role in ("system", "developer")]
    text, instruction = _text_of(said[0]), "\n".join(system) or None
    for what, given in (("question", text), ("instruction", instruction or "")):
        if len(given) > most_characters:
            raise DataError(f"the {what} has {len(given):,} characters; at most {most_characters:,} are taken")
    parts = said[0].content if isinstance(said[0].content, list) else []
    urls = [part.image_url.url for part in parts if part.type == "image_url" and part.image_url is not None]
    if not urls:
        raise DataError(
            'no picture; send it as {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
        )
    left, pictures = most_pixels, []
    for number, url in enumerate(urls, start=1):
        pixels = read_pixels(_bytes_of(url, number), f"picture {number}", left)
        left -= pixels.shape[0] * pixels.shape[1]
        pictures.append(pixels)
    new_tokens = request.max_completion_tokens or request.max_tokens or min(30, most_new_tokens)
    if new_tokens > most_new_tokens:
        raise DataError(f"max_tokens is {new_tokens}; at most {most_new_tokens} are given")
    return Question(tuple(pictures), text, instruction), Decoding(new_tokens, 1, request.temperature, request.top_p)


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content or [] if part.type == "text" and part.text)


def _bytes_of(url: str, number: int) -> bytes:
    head, found, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not found:
        raise DataError(
            f"picture {number} is {url[:40]!r}; send its bytes as data:image/png;base64,... (addresses are not fetched)"
        )
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError as error:
        raise DataError(f"picture {number} is not base64 ({error})") from error


class Reply:
    """Replies to one request, whole or in pieces.

    Args:
        model: the model's name.
    """

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: str, is_cut: bool) -> dict[str, Any]:
        """Give the whole answer."""
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": _reason(is_cut), "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice]}

    def piece(self, text: str, first: bool = False) -> dict[str, Any]:
        """Give a piece of an answer that grows."""
        delta = {"content": text, **({"role": "assistant"} if first else {})}
        return self._chunk(delta, None)

    def end(self, is_cut: bool) -> dict[str, Any]:
        """Give the end of an answer that grew."""
        return self._chunk({}, _reason(is_cut))

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


def _reason(is_cut: bool) -> str:
    return "length" if is_cut else "stop"


def error_body(message: str, kind: str) -> dict[str, Any]:
    """Make the body of an error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
