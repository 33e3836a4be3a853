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

from pydantic import BaseModel, ConfigDict, Field

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Answering, Decoding, Question, Turns
from gitllm_plugin.inference.messages import Turn, data_of, is_data, read_turn, turns_before
from gitllm_plugin.m3it.images import check_header
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


@dataclass(frozen=True)
class Asked:
    """What a request asks, its pictures not looked at yet.

    Attributes:
        text, instruction, turns: see :class:`~gitllm_plugin.inference.asking.Question`.
        pictures: their addresses.
        decoding: how the answer is searched for.
    """

    text: str
    instruction: str | None
    pictures: tuple[str, ...]
    decoding: Decoding
    turns: Turns = ()

    def count_pixels(self, limits: Limits) -> int:
        """Read how large the pictures are, decoding none.

        Raises:
            DataError: one cannot be read, or is too large.
        """
        left = limits.pixels
        for name, url in self._named():
            width, height = check_header(_bytes_of(url, name, limits), name, left)
            left -= width * height
        return limits.pixels - left

    def question(self, limits: Limits, pixels: int) -> Question:
        """Decode the pictures, of so many pixels and no more.

        Raises:
            DataError: one cannot be read, or has become larger.
        """
        pictures = []
        for name, url in self._named():
            picture = read_pixels(_bytes_of(url, name, limits), name, pixels)
            pixels -= picture.shape[0] * picture.shape[1]
            pictures.append(picture)
        return Question(tuple(pictures), self.text, self.instruction, self.turns)

    def _named(self) -> list[tuple[str, str]]:
        return [(f"picture {number}", url) for number, url in enumerate(self.pictures, start=1)]


def read_request(request: ChatRequest, limits: Limits, engine: Answering) -> Asked:
    """Read what is asked: the user's last text, the system's as the instruction, and the conversation's pictures.

    Earlier texts are read where the model was trained on conversations, from where on all pictures are seen.

    Args:
        request: a conversation.
        limits: what it may cost.
        engine: the model; of the user's earlier messages as many of the newest pictures as it takes are seen.

    Raises:
        DataError: the user does not speak last, no picture, a text that is too long, or an answer that would be;
            ConfigError: no such way to search for an answer.
    """
    places = engine.places_pictures
    turns = [read_turn({"role": each.role, "content": _content(each)}, places) for each in request.messages]
    said = [turn for turn in turns if turn.role in ("user", "assistant")]
    if not said or said[-1].role != "user":
        last = "assistant's" if said else "system's"
        raise DataError(f"the last message is the {last}; what is asked is the user's last message: add one")
    if any(turn.pictures for turn in turns if turn.role != "user"):
        raise DataError("a message that is not the user's has a picture; send pictures in messages of the user")
    system = [turn.text for turn in turns if turn.role in ("system", "developer")]
    text, instruction = said[-1].text, "\n".join(system) or None
    urls, seen = _pictures_of(said, engine.max_images)
    before = turns_before(seen) if engine.conversations else ()
    earlier = "".join(words for turn in before for words in turn)
    for what, given in (("question", text), ("instruction", instruction or ""), ("conversation before it", earlier)):
        if len(given) > limits.characters:
            raise DataError(f"the {what} has {len(given):,} characters; at most {limits.characters:,} are taken")
    if not urls:
        raise DataError(
            'no picture; send it as {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
        )
    new_tokens = request.max_completion_tokens or request.max_tokens or min(30, limits.new_tokens)
    if new_tokens > limits.new_tokens:
        raise DataError(f"max_tokens is {new_tokens}; at most {limits.new_tokens} are given")
    decoding = Decoding(new_tokens, 1, request.temperature, request.top_p, max_seconds=limits.seconds)
    decoding.as_arguments()
    return Asked(text, instruction, urls, decoding, before)


def _content(message: Message) -> Any:
    if isinstance(message.content, str) or message.content is None:
        return message.content or ""
    return [part.model_dump() for part in message.content]


def _pictures_of(turns: Sequence[Turn], most: int) -> tuple[tuple[str, ...], Sequence[Turn]]:
    """Give the pictures of the last message, and in front those of as many earlier ones as the model takes.

    Gives the messages too from where on all pictures are among them: those before are about others.
    """
    urls, first = turns[-1].pictures, len(turns) - 1
    while first and len(turns[first - 1].pictures) + len(urls) <= most:
        first -= 1
        urls = turns[first].pictures + urls
    # What the assistant said of a picture that is left out is no beginning.
    while turns[first].role == "assistant":
        first += 1
    return urls, turns[first:]


def _bytes_of(url: str, name: str, limits: Limits) -> bytes:
    if limits.files is not None and url.startswith("file:"):
        return _file_below(limits.files, url, name, limits.megabytes * 2**20)
    if not is_data(url):
        raise DataError(
            f"{name} is {url[:40]!r}; send its bytes as data:image/png;base64,... (addresses are not fetched, and "
            "files only below the folder of --files)"
        )
    return data_of(url, name)


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
