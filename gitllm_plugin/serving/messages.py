"""Requests and replies in the form of OpenAI's chat completions, as far as a model of pictures has them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pybase64
from pydantic import BaseModel, ConfigDict, Field

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Decoding, Question
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
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        megabytes: of a request, and of a file that it names.
        pixels: of all its pictures.
        characters: of its question, and of its instruction.
        new_tokens: of an answer.
        waiting: questions in the queue.
        seconds: for an answer, waiting included.
        batch_size: questions that are answered together.
        files: the folder below which are files that requests may name; None: they may name none.
    """

    megabytes: int = 20
    pixels: int = 50_000_000
    characters: int = 20_000
    new_tokens: int = 256
    waiting: int = 64
    seconds: float = 120
    batch_size: int = 8
    files: Path | None = None


def read_request(request: ChatRequest, limits: Limits, most_pictures: int) -> tuple[Question, Decoding]:
    """Read what is asked: the user's last text, the system's as the instruction, and the conversation's pictures.

    Earlier texts are not read: models are trained on single questions.

    Args:
        request: a conversation.
        limits: what it may cost.
        most_pictures: that the model takes; of the user's earlier messages the newest pictures are taken.

    Raises:
        DataError: the user does not speak last, no picture, one that cannot be read or is too large, a text that is too
            long, or an answer that would be; ConfigError: no such way to search for an answer.
    """
    said = [message for message in request.messages if message.role in ("user", "assistant")]
    if not said or said[-1].role != "user":
        last = "assistant's" if said else "system's"
        raise DataError(f"the last message is the {last}; what is asked is the user's last message: add one")
    if any(_urls_of(message) for message in request.messages if message.role != "user"):
        raise DataError("a message that is not the user's has a picture; send pictures in messages of the user")
    system = [_text_of(message) for message in request.messages if message.role in ("system", "developer")]
    text, instruction = _text_of(said[-1]), "\n".join(system) or None
    for what, given in (("question", text), ("instruction", instruction or "")):
        if len(given) > limits.characters:
            raise DataError(f"the {what} has {len(given):,} characters; at most {limits.characters:,} are taken")
    urls = _pictures_of([message for message in said if message.role == "user"], most_pictures)
    if not urls:
        raise DataError(
            'no picture; send it as {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
        )
    left, pictures = limits.pixels, []
    for number, url in enumerate(urls, start=1):
        pixels = read_pixels(_bytes_of(url, f"picture {number}", limits), f"picture {number}", left)
        left -= pixels.shape[0] * pixels.shape[1]
        pictures.append(pixels)
    new_tokens = request.max_completion_tokens or request.max_tokens or min(30, limits.new_tokens)
    if new_tokens > limits.new_tokens:
        raise DataError(f"max_tokens is {new_tokens}; at most {limits.new_tokens} are given")
    decoding = Decoding(new_tokens, 1, request.temperature, request.top_p, max_seconds=limits.seconds)
    decoding.as_arguments()
    return Question(tuple(pictures), text, instruction), decoding


def _pictures_of(messages: Sequence[Message], most: int) -> list[str]:
    """Give the pictures of the last message, and in front those of as many earlier ones as the model takes."""
    urls = _urls_of(messages[-1])
    for message in reversed(messages[:-1]):
        earlier = _urls_of(message)
        if len(earlier) + len(urls) > most:
            break
        urls = earlier + urls
    return urls


def _urls_of(message: Message) -> list[str]:
    parts = message.content if isinstance(message.content, list) else []
    return [part.image_url.url for part in parts if part.type == "image_url" and part.image_url is not None]


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content or [] if part.type == "text" and part.text)


def _bytes_of(url: str, name: str, limits: Limits) -> bytes:
    if limits.files is not None and url.startswith("file:"):
        return _file_below(limits.files, url, name, limits.megabytes * 2**20)
    head, found, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not found:
        raise DataError(
            f"{name} is {url[:40]!r}; send its bytes as data:image/png;base64,... (addresses are not fetched, and "
            "files only below the folder of --files)"
        )
    try:
        return pybase64.b64decode(data, validate=True)
    except ValueError as error:
        raise DataError(f"{name} is not base64 ({error})") from error


def _file_below(folder: Path, url: str, name: str, most_bytes: int) -> bytes:
    """Read a file of the server, with links followed that stay below the folder.

    Raises:
        DataError: it is not below; whether it exists then is not told.
    """
    root, content = os.path.realpath(folder), None
    try:
        parts = urlsplit(url)
        # A path that begins with / is one from the machine's root, and has to lead below the folder too.
        file = Path(os.path.realpath(os.path.join(root, unquote(parts.path))))
        if parts.netloc in ("", "localhost") and file.is_relative_to(root) and file.is_file():
            with open(file, "rb") as opened:
                content = opened.read(most_bytes + 1)
    except (OSError, ValueError):  # no name of a file, or one that this server may not read
        content = None
    if content is None:
        raise DataError(f"{name} is {url[:200]!r}, which is no file below the folder that this server gives (--files)")
    if len(content) > most_bytes:
        raise DataError(f"{name} is a file of more than {most_bytes:,} bytes, which is the most that is read")
    return content


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
