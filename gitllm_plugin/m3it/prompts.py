"""Prompt templates: the same text in front of the answer in training and at inference.

A prompt ends where the answer begins; the answer follows after one space.
"""

from collections.abc import Callable

from gitllm_plugin.errors import ConfigError


def _article(instruction: str, question: str) -> str:
    # The markers stay where the question is empty, as in the article.
    return f"##Instruction: {instruction} ##Question: {question} ##Answer:"


def _plain(instruction: str, question: str) -> str:
    # No markers: half the tokens where questions are short.
    return " ".join(part for part in (instruction, question, "Answer:") if part)


def _question(instruction: str, question: str) -> str:
    # Plain GIT was trained on bare questions, and on captions behind nothing.
    return question


TEMPLATES: dict[str, Callable[[str, str], str]] = {"article": _article, "plain": _plain, "question": _question}


def build_prompt(template: str, instruction: str, question: str) -> str:
    """Fills a template.

    Args:
        template: a name of :data:`TEMPLATES`.
        instruction: what is to be done.
        question: the question itself; may be empty. Space around both is removed.

    Raises:
        ConfigError: if there is no such template.
    """
    check_template(template)
    return TEMPLATES[template](instruction.strip(), question.strip())


def check_template(template: str) -> None:
    """Raises ConfigError, with the names that exist, unless ``template`` is one of :data:`TEMPLATES`."""
    if template not in TEMPLATES:
        known = ", ".join(map(repr, sorted(TEMPLATES)))
        raise ConfigError(f"unknown prompt template {template!r}; the templates are {known}")
