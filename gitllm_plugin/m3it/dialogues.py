"""Dialogues that a row holds in one text or list: the turns, and the question that is asked behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gitllm_plugin.m3it.problems import RowError

_USER, _ASSISTANT = "question", "answer"
_SIDES: dict[str, str] = {name: _USER for name in ("q", "question", "human", "user")}
_SIDES |= {name: _ASSISTANT for name in ("a", "answer", "assistant", "gpt")}
_MARK = re.compile(r"(?:^|(?<=\s))(Q|A|(?i:question|answer|human|user|assistant|gpt)) ?\d*[:：]\s*")
"""In front of what a side says: ``Q:``, ``A1:``, ``Question 2:``, ``Human:``."""

Turns = tuple[tuple[str, str], ...]
_Said = list[tuple[str, str]]


def split_dialogue(asked: Any, before: Any = None) -> tuple[Turns, Any]:
    """Divide a dialogue into its turns and its last question.

    Args:
        asked: the row's question: a text, in which sides are marked (``Q: ... A: ... Q: ...``), or a list of texts or
            of pairs, in turns. What stands in front of the first mark, as a caption, belongs to the first question.
        before: what was said before, in one of these forms, where the row has it beside the question.

    Returns:
        Questions and answers, and the question. Of a text without an answer in it no turns, and the text as it is.

    Raises:
        RowError: question and answer do not take turns, or the last is none of the questions.
    """
    said = [*_said(before), *_said(asked)]
    if said and said[-1] == (_ASSISTANT, ""):
        said.pop()  # the mark in front of the answer that is to be given
    sides = [side for side, _ in said]
    if _ASSISTANT not in sides:
        return (), "\n".join(words for _, words in said) if said and not isinstance(asked, str) or before else asked
    if sides != [_USER, _ASSISTANT] * (len(said) // 2) + [_USER]:
        listed = ", ".join(sides[:6]) + (", ..." if len(sides) > 6 else "")
        raise RowError(
            "wrong_value",
            f"the dialogue has the turns {listed}; expected question and answer, one after another, a question last",
        )
    words = [text for _, text in said]
    return tuple(zip(words[:-1:2], words[1::2], strict=True)), words[-1]


def read_pairs(turns: Any) -> Sequence[Any]:
    """Check the ``turns`` of a uniform row, which follow on its first question and answer; none for None.

    Raises:
        RowError: they are no lists of a question and an answer.
    """
    pairs = [] if turns is None else turns if isinstance(turns, list) else [turns]
    wrong = next((pair for pair in pairs if not isinstance(pair, list) or len(pair) != 2), None)
    if wrong is not None:
        raise RowError("wrong_value", f"'turns' has {wrong!r:.40}, expected lists of a question and an answer")
    return pairs


def _said(dialogue: Any) -> _Said:
    """Name the side of each piece of a text or list."""
    if dialogue is None:
        return []
    if isinstance(dialogue, str):
        return _of_text(dialogue)
    pieces: list[Any] = [None]
    if isinstance(dialogue, list):
        pieces = [words for turn in dialogue for words in _of_turn(turn)]
    if not all(isinstance(words, str) for words in pieces):
        raise RowError("wrong_value", f"the dialogue is {dialogue!r:.60}, expected a text, or a list of texts or pairs")
    if any(_MARK.match(words) for words in pieces):
        return _of_text("\n".join(pieces))
    return [((_USER, _ASSISTANT)[number % 2], words.strip()) for number, words in enumerate(pieces)]


def _of_turn(turn: Any) -> Sequence[Any]:
    if isinstance(turn, Mapping):
        return [turn[side] for side in (_USER, _ASSISTANT) if side in turn]
    return turn if isinstance(turn, list) else [turn]


def _of_text(text: str) -> _Said:
    front, *marked = _MARK.split(text)
    said = [(_SIDES[mark.lower()], words.strip()) for mark, words in zip(marked[::2], marked[1::2], strict=True)]
    if not front.strip():
        return said
    if said and said[0][0] == _USER:
        return [(_USER, f"{front.strip()}\n{said[0][1]}"), *said[1:]]
    return [(_USER, front.strip()), *said]
