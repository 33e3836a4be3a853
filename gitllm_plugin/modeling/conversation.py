"""Conversation templates: a question as the user's turn, and the answer as the assistant's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gitllm_plugin.config.model import IMAGE_MARK
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.plain_text import IMAGE, Pieces

_QUESTION, _ANSWER = "QUESTION", "ANSWERTEXT"

Turns = Sequence[tuple[str, str]]
"""What user and assistant said, one after another."""


def turns_of(prompt: str) -> Turns:
    """Give what was said before a prompt, where it is a text that knows it (``turns``)."""
    return getattr(prompt, "turns", ())


@dataclass(frozen=True)
class Turn:
    """What a template writes around an answer.

    Attributes:
        space: white space between where the assistant begins and what it says; None: the template does not tell.
        end: the token that ends what it says; None: none.
    """

    space: str | None
    end: int | None


@dataclass(frozen=True)
class Conversation:
    """Turns of a conversation, written by a template.

    Attributes:
        tokenizer: gives the template its special tokens by name.
        template: Jinja.
        special: special tokens as they are written, and their ids; what of them the user writes stays a string.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    special: Mapping[str, int]

    def ask(self, question: str, turns: Turns = (), shows_pictures: bool = False) -> Pieces:
        """Write the user's turn and the beginning of the assistant's.

        Args:
            question: what the user says.
            turns: what was said before.
            shows_pictures: whether ``<image>`` in what the user says is a picture.

        Raises:
            ConfigError: the template cannot be used.
        """
        hidden: dict[str, str] = {}
        taken: list[str] = []

        def free() -> str:
            used = {*question, *self.template, *taken, *(c for turn in turns for said in turn for c in said)}
            taken.append(next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used))
            return taken[-1]

        picture = free() if shows_pictures else None

        def show(said: str) -> str:
            return said if picture is None else said.replace(IMAGE_MARK, picture)

        def hide(found: re.Match[str]) -> str:
            if found[0] not in hidden:
                hidden[found[0]] = free()
            return hidden[found[0]]

        asked = self._pattern.sub(hide, show(question))
        before = [
            (self._pattern.sub(hide, show(user)), self._pattern.sub(hide, assistant)) for user, assistant in turns
        ]
        pieces: list[str | int] = []
        for place, piece in enumerate(self._pattern.split(render(self.tokenizer, self.template, asked, turns=before))):
            if place % 2:
                pieces.append(self.special[piece])
                continue
            for written, character in hidden.items():
                piece = piece.replace(character, written)
            pieces += with_pictures(piece, picture)
        return tuple(pieces)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _any_of(self.special)


def with_pictures(text: str, mark: str | None) -> Pieces:
    """Cut a text at its pictures; nothing is left of an empty one.

    Args:
        text: what was written.
        mark: what stands for a picture; None: nothing.
    """
    parts = [text] if mark is None else text.split(mark)
    pieces = [piece for part in parts for piece in (part, IMAGE)][:-1]
    return tuple(piece for piece in pieces if piece != "")


def render(
    tokenizer: PreTrainedTokenizerBase, template: str, question: str, answer: str | None = None, turns: Turns = ()
) -> str:
    """Write a question, and its answer or, without one, where the answer begins.

    Args:
        tokenizer, template: its special tokens by name, and Jinja.
        question, answer: what user and assistant say.
        turns: what they said before.

    Raises:
        ConfigError: the template cannot be used.
    """
    said = [
        {"role": role, "content": words}
        for turn in turns
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    said.append({"role": "user", "content": question})
    if answer is not None:
        said.append({"role": "assistant", "content": answer})
    try:
        text = tokenizer.apply_chat_template(
            said, chat_template=template, add_generation_prompt=answer is None, tokenize=False
        )
    except TemplateError as error:
        raise ConfigError(
            f"the chat template cannot write a question and its answer: {error}; set chat_template: false, or give the "
            "tokenizer another template"
        ) from error
    return cast(str, text)


def find_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> Turn:
    """Find out, by writing one, what stands around an answer.

    Raises:
        ConfigError: the template cannot be used.
    """
    asked, whole = render(tokenizer, template, _QUESTION), render(tokenizer, template, _QUESTION, _ANSWER)
    place = whole.rfind(_ANSWER)
    if place < 0:
        return Turn(None, None)
    between = whole[len(asked) : place] if whole.startswith(asked) else None
    space = between if between is not None and not between.strip() else None
    added = {written: number for written, number in cast(Any, tokenizer).get_added_vocab().items() if written.strip()}
    found = _any_of(added).match(whole[place + len(_ANSWER) :].lstrip()) if added else None
    return Turn(space, added[found[0]] if found else None)


def _any_of(written: Mapping[str, int]) -> re.Pattern[str]:
    """The longest of those that begin at a place, as tokenizers find them; nothing where there are none."""
    longest_first = sorted(written, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
