"""What is asked, and how an answer is searched for: the same for every engine, and free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.pictures import Picture

Turns = tuple[tuple[str, str], ...]
"""Questions and answers, one after another."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is searched for.

    Attributes:
        max_new_tokens: most tokens of an answer.
        num_beams: beams of the search; 1 for greedy decoding.
        temperature: 0 searches; above 0 samples, with logits divided by it.
        top_p: mass of the nucleus that is sampled from.
        repetition_penalty: above 1 discourages repeated tokens.
        max_seconds: after which the search ends with what it has; None: it takes as long as it takes.
    """

    max_new_tokens: int = 30
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    max_seconds: float | None = None

    def as_arguments(self) -> dict[str, Any]:
        """Give them as arguments of transformers' ``generate``.

        Raises:
            ConfigError: beams together with sampling, or a number out of its range.
        """
        numbers = (self.max_new_tokens >= 1, self.num_beams >= 1, self.temperature >= 0, 0 < self.top_p <= 1)
        if not all((*numbers, self.repetition_penalty > 0, self.max_seconds is None or self.max_seconds > 0)):
            raise ConfigError(
                f"{self}: max_new_tokens and num_beams are at least 1, temperature at least 0, top_p above 0 and at "
                "most 1, repetition_penalty and max_seconds above 0"
            )
        if self.temperature > 0 and self.num_beams > 1:
            raise ConfigError("give temperature (sampling) or num_beams (search), not both")
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            **({} if self.max_seconds is None else {"max_time": self.max_seconds}),
            **(sampling if self.temperature > 0 else {"do_sample": False}),
        }


@dataclass(frozen=True)
class Question:
    """What is asked in one of several questions, see :meth:`Answering.answers`.

    Attributes:
        pictures: of this question, in their order. The same path or object in several questions is the same picture.
        text: may be empty.
        instruction: in the place of the model's usual one.
        turns: of a conversation, the questions and answers before this one, about the same pictures.
    """

    pictures: tuple[Picture, ...]
    text: str = ""
    instruction: str | None = None
    turns: Turns = ()

    def same_pictures(self) -> tuple:
        """Give what questions about the same pictures have in common."""
        return tuple(each if isinstance(each, (str, Path, bytes)) else id(each) for each in self.pictures)


class Answering(Protocol):
    """What answers questions about pictures: a :class:`~gitllm_plugin.inference.pipeline.Pipeline`, or an engine.

    Calls from several threads wait for each other.

    Attributes:
        instruction: stands in a prompt where none is given; None: one for questions and one for no question.
        conversations: whether the model was trained on conversations, so that questions may have turns before them.
    """

    instruction: str | None
    conversations: bool

    @property
    def max_images(self) -> int:
        """Most pictures of one question."""
        ...

    @property
    def places_pictures(self) -> bool:
        """Whether ``<image>`` in a question, or in one before it, is where its next picture stands."""
        ...

    def answer(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        instruction: str | None = None,
        decoding: Decoding | None = None,
        turns: Turns = (),
    ) -> str:
        """Answer one question."""
        ...

    def answers(self, questions: Sequence[Question], decoding: Decoding | None = None) -> list[str]:
        """Answer several."""
        ...

    def stream(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        instruction: str | None = None,
        decoding: Decoding | None = None,
        turns: Turns = (),
    ) -> Iterator[str]:
        """Give the answer so far, each time that it has grown; who stops reading (``close()``) stops the model."""
        ...

    def seen(self, picture: Picture) -> Image.Image:
        """Show what the image encoder sees of a picture, before it is normalised."""
        ...

    def is_cut(self, answer: str, decoding: Decoding) -> bool:
        """Tell whether an answer ended because it had as many tokens as it may have."""
        ...

    def describe(self) -> dict[str, str]:
        """Say what answers: ``image_encoder``, ``language_model``, ``parameters`` and ``runs_on``, for people."""
        ...
