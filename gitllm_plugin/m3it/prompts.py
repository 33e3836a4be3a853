"""Prompt templates: the same text in front of the answer in training and at inference.

A prompt ends where the answer begins; the answer follows after one space.
"""

from collections.abc import Callable

from gitllm_plugin.errors import ConfigError

WITH_QUESTION, WITHOUT_QUESTION = "Answer the question about the image.", "Describe the picture."
"""Instructions where none is given, the same for rows, training and inference."""


def _article(instruction: str, question: str) -> str:
    # The markers stay where the question is empty, as in the article.
    return f"##Instruction: {instruction} ##Question: {question} ##Answer:"


def _plain(instruction: str, question: str) -> str:
    # No markers: half the tokens where questions are short.
    return " ".join(words for words in (instruction, question, "Answer:") if words)


def _question(instruction: str, question: str) -> str:
    # Plain GIT was trained on bare questions, and on captions behind nothing.
    return question


TEMPLATES: dict[str, Callable[[str, str], str]] = {"article": _article, "plain": _plain, "question": _question}


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
    return TEMPLATES[template](instruction.strip(), question.strip())


def check_template(template: str) -> None:
    """Check a template's name.

    Raises:
        ConfigError: if it is none of :data:`TEMPLATES`, which are named.
    """
    if template not in TEMPLATES:
        known = ", ".join(map(repr, sorted(TEMPLATES)))
        raise ConfigError(f"unknown prompt template {template!r}; the templates are {known}")
