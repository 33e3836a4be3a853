"""Prompt templates: the same text in front of the answer in training and at inference.

A prompt ends where the answer begins; the answer follows after one space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gitllm_plugin.errors import ConfigError

WITH_QUESTION, WITHOUT_QUESTION = "Answer the question about the image.", "Describe the picture."
"""Instructions where none is given, the same for rows, training and inference."""


@dataclass(frozen=True)
class Template:
    """A template, from which prompts are made and in which their parts are found again.

    Attributes:
        text: with ``{instruction}`` and ``{question}``, one time each at most and in this order.
        keeps_marks: what an empty instruction or question leaves: all that stands around it, or no gap.
    """

    text: str
    keeps_marks: bool = True

    def fill(self, instruction: str, question: str) -> str:
        """Make a prompt."""
        given, text = {_INSTRUCTION: instruction, _QUESTION: question}, self.text
        if not self.keeps_marks:
            empty = "|".join(re.escape(field) for field, words in given.items() if not words)
            text = re.sub(f" ?({empty})", "", text).strip() if empty else text
        return "".join(given.get(part, part) for part in _FIELDS.split(text))

    def find(self, prompt: str, question: str | None) -> slice | None:
        """Find the part of a prompt that may be shortened, its question, or its instruction where that is empty.

        Args:
            prompt: a text.
            question: what was asked, where it is known.

        Returns:
            None: the prompt is of another template, or has another question.
        """
        before, behind = self.text.partition(_QUESTION)[::2]
        head, mark = before.partition(_INSTRUCTION)[::2]
        if not prompt.startswith(head) or not prompt.endswith(behind):
            return None
        if question is None and not before + behind:
            return None  # without marks, every text is of this template
        end = len(prompt) - len(behind)
        if question:
            start = end - len(question)
            return slice(start, end) if start >= len(head) and prompt[start:end] == question else None
        if not self.keeps_marks or not mark:
            return slice(len(head), end)
        # Where the question is not known, it begins at the first mark, which is how it was asked in most cases.
        place = end - len(mark) if question is not None else prompt.find(mark, len(head), end)
        if place < len(head) or prompt[place : place + len(mark)] != mark:
            return None
        asked = slice(place + len(mark), end)
        return asked if asked.start < end else slice(len(head), place)


_INSTRUCTION, _QUESTION = "{instruction}", "{question}"
_FIELDS = re.compile("({instruction}|{question})")

TEMPLATES: dict[str, Template] = {
    # The markers stay where the question is empty, as in the article.
    "article": Template("##Instruction: {instruction} ##Question: {question} ##Answer:"),
    # What heron trains on, and its released chat models read: the question alone, or with its instruction.
    "heron": Template("##human: {instruction} {question}\n##gpt:", keeps_marks=False),
    # No markers: half the tokens where questions are short.
    "plain": Template("{instruction} {question} Answer:", keeps_marks=False),
    # Plain GIT was trained on bare questions, and on captions behind nothing.
    "question": Template("{question}"),
}
"""By name; those with more marks first, for a prompt is looked for in this order."""


class Prompt(str):
    """A prompt that still knows the question it was made of, for whoever finds that it was none.

    Attributes:
        question: without instruction and template.
        turns: prompts and answers before it, in a conversation.
    """

    question: str
    turns: tuple[tuple[str, str], ...]

    def __new__(cls, text: str, question: str = "", turns: Sequence[tuple[str, str]] = ()) -> Prompt:
        """Make one of its text."""
        prompt = super().__new__(cls, text)
        prompt.question = question
        prompt.turns = tuple(turns)
        return prompt


def default_instruction(question: str) -> str:
    """Choose what a question, or no question, is asked with where no instruction is given."""
    return WITH_QUESTION if question.strip() else WITHOUT_QUESTION


def build_prompt(template: str, instruction: str | None, question: str) -> str:
    """Fill a template.

    Args:
        template: a name of :data:`TEMPLATES`.
        instruction: what is to be done; None: see :func:`default_instruction`.
        question: the question itself; may be empty. Space around both is removed.

    Raises:
        ConfigError: if there is no such template.
    """
    check_template(template)
    if instruction is None:
        instruction = default_instruction(question)
    return TEMPLATES[template].fill(instruction.strip(), question.strip())


def prompt_behind(
    turns: Sequence[tuple[str, str]],
    question: str,
    instruction: str | None,
    make: Callable[[str, str | None], str],
) -> str:
    """Make the prompt of a question, which knows what was said before; the same in training and at inference.

    Args:
        turns: questions and answers before it.
        question: what is asked now.
        instruction: of the conversation: it stands in front of the first question alone; None: the maker's own.
        make: makes a prompt of a question and an instruction.
    """
    if not turns:
        return make(question, instruction)
    before = [(make(asked, "" if number else instruction), answer) for number, (asked, answer) in enumerate(turns)]
    return Prompt(make(question, ""), question.strip(), before)


def find_shortenable(prompt: str, question: str | None = None) -> slice | None:
    """Find the part of a prompt of any template that may lose its end where the prompt is too long.

    Args:
        prompt: a text of :func:`build_prompt`, or another one.
        question: what was asked, where it is known; may be empty, and have space around it.

    Returns:
        Its place: the question's; the instruction's where the question is empty; both where they cannot be told apart.
        None: the prompt is of no template, and its question is not known or not in it.
    """
    question = None if question is None else question.strip()
    for template in TEMPLATES.values():
        found = template.find(prompt, question)
        if found is not None:
            return found
    # Of no template: the last place where the question stands.
    start = prompt.rfind(question) if question else -1
    return slice(start, start + len(question)) if question and start >= 0 else None


def find_template(prompt: str) -> str | None:
    """Name the template whose marks a prompt has; None where it has none."""
    for name, template in TEMPLATES.items():
        marks = [part.strip() for part in _FIELDS.split(template.text) if part not in (_INSTRUCTION, _QUESTION)]
        marks = [mark for mark in marks if mark]
        if marks and re.fullmatch(".*" + ".*".join(map(re.escape, marks)) + r"\s*", prompt, re.DOTALL):
            return name
    return None


def check_template(template: str) -> None:
    """Check a template's name.

    Raises:
        ConfigError: if it is none of :data:`TEMPLATES`, which are named.
    """
    if template not in TEMPLATES:
        known = ", ".join(map(repr, sorted(TEMPLATES)))
        raise ConfigError(f"unknown prompt template {template!r}; the templates are {known}")


def settings_of_template(template: str) -> dict[str, Any]:
    """Say how a folder's prompts are made, as ``settings`` of its description have it.

    Raises:
        ConfigError: see :func:`check_template`.
    """
    check_template(template)
    # heron's chat models were asked questions as they are.
    instruction = {"instruction": ""} if template == "heron" else {}
    return {"text_processor": {"name": "git_llm_instruction", "template": template, **instruction}}
