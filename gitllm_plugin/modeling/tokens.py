"""Prompts and answers to token ids and labels; the same ids for a prompt in training and at inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gitllm_plugin.errors import ConfigError, DataError

IGNORED = -100


@dataclass(frozen=True)
class TextBatch:
    """Token ids of a batch of N texts.

    Attributes:
        input_ids: long ``[N, T]``.
        attention_mask: long ``[N, T]``, 1 on real tokens; padding is on the right.
        labels: long ``[N, T]``, ``-100`` where a token is not trained on; None for prompts alone.
        num_truncated: how many prompts lost an end of their question to fit.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    num_truncated: int = 0


@dataclass(frozen=True)
class TextEncoder:
    """Turns prompts and answers into a :class:`TextBatch`.

    Attributes:
        tokenizer: the language model's own tokenizer; its special tokens in front of a text (BOS) are kept.
        loss_on: "answer": answer and end token are trained on; "all": every text token (the article's).
        chat_template: None, or the Jinja template of a conversation: a prompt is then what the user says in it, and
            the answer what the assistant does.
    """

    tokenizer: PreTrainedTokenizerBase
    loss_on: Literal["answer", "all"] = "answer"
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.loss_on not in ("answer", "all"):
            raise ConfigError(f"loss_on is {self.loss_on!r}; it may be 'answer' or 'all'")

    @property
    def special_tokens(self) -> dict[str, int]:
        """End and padding token for generation, the ones of training."""
        end = cast(int, self.tokenizer.eos_token_id)
        pad = cast("int | None", self.tokenizer.pad_token_id)
        return {"eos_token_id": end, "pad_token_id": end if pad is None else pad}

    def prompts(
        self, prompts: Sequence[str], questions: Sequence[str] | None = None, max_tokens: int | None = None
    ) -> TextBatch:
        """Encode prompts for generation.

        Args:
            prompts: N texts.
            questions: the part of each prompt that may be shortened; None: all of it.
            max_tokens: most tokens of a prompt; None: as many as it has.

        Raises:
            DataError: a prompt is too long even without its question.
        """
        fitted = [
            self._fit(prompt, questions[i] if questions else prompt, max_tokens) for i, prompt in enumerate(prompts)
        ]
        return self._pad([ids for ids, _ in fitted], None, sum(cut for _, cut in fitted))

    def prompts_and_answers(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        questions: Sequence[str] | None = None,
        max_tokens: int | None = None,
    ) -> TextBatch:
        """Encode prompts followed by " answer" and the end token, with labels.

        Args:
            prompts: N texts.
            answers: N texts, never shortened.
            questions, max_tokens: as for :meth:`prompts`; the bound is on prompt and answer together.

        Raises:
            DataError: prompt and answer are too long even without the question.
        """
        ids, labels, num_truncated = [], [], 0
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            after = self._answer_ids(self._space_before_answer(prompt), answer)
            room = None if max_tokens is None else max_tokens - len(after)
            before, cut = self._fit(prompt, questions[i] if questions else prompt, room)
            ids.append(before + after)
            labels.append((before if self.loss_on == "all" else [IGNORED] * len(before)) + after)
            num_truncated += cut
        return self._pad(ids, labels, num_truncated)

    def least_tokens(
        self, prompt: str, answer: str | None = None, question: str | None = None, enough: int | None = None
    ) -> int:
        """Count the tokens that a prompt takes when all of its question is left out, answer and end token included."""
        before, found, after = prompt.rpartition(question) if question else (prompt, "", "")
        ids = self._prompt_ids(before + after)
        return len(ids) + (
            len(self._answer_ids(self._space_before_answer(prompt), answer)) if answer is not None else 0
        )

    def candidates(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]], end: bool = True
    ) -> list[list[list[int]]]:
        """Encode answers as they follow prompts.

        Args:
            prompts: N texts.
            candidates: N lists of answers; the same list for several prompts is encoded once.
            end: whether the end token, which closes an answer, belongs to it.
        """
        encoded: dict[tuple[str, int], list[list[int]]] = {}
        found = []
        for prompt, answers in zip(prompts, candidates, strict=True):
            space = self._space_before_answer(prompt)
            key = (space, id(answers))
            if key not in encoded:
                ids = [self._answer_ids(space, answer) for answer in answers]
                encoded[key] = ids if end else [answer[:-1] for answer in ids]
            found.append(encoded[key])
        return found

    def decode(self, token_ids: Tensor) -> list[str]:
        """Turn generated ids ``[N, L]`` into answers, without special tokens and outer white space."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def _space_before_answer(self, prompt: str) -> str:
        # Chat templates end with the line break behind which the assistant speaks.
        return "" if self._in_conversation(prompt)[-1:].isspace() else " "

    def _answer_ids(self, space: str, answer: str) -> list[int]:
        return [*self._ids(space + answer.strip()), cast(int, self.tokenizer.eos_token_id)]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _in_conversation(self, prompt: str) -> str:
        if self.chat_template is None:
            return prompt
        said = [{"role": "user", "content": prompt}]
        return cast(
            str,
            self.tokenizer.apply_chat_template(
                said, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
            ),
        )

    def _prompt_ids(self, prompt: str) -> list[int]:
        text = self._in_conversation(prompt)
        begin = self.tokenizer.bos_token
        # Many chat templates write the special token in front of a text themselves.
        has_begin = self.chat_template is not None and isinstance(begin, str) and text.startswith(begin)
        ids = self.tokenizer(text, add_special_tokens=not has_begin)["input_ids"]
        # Some tokenizers close every text with the end token; here the answer still follows.
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        # Something must stand before an answer: its first token is not predicted from the image.
        start = cast("int | None", self.tokenizer.bos_token_id)
        return ids or [self.special_tokens["eos_token_id"] if start is None else start]

    def _fit(self, prompt: str, question: str, max_tokens: int | None) -> tuple[list[int], bool]:
        """Encode a prompt, of its question only the beginning that fits, and tell whether it was shortened."""
        ids = self._prompt_ids(prompt)
        if max_tokens is None or len(ids) <= max_tokens:
            return ids, False
        before, found, after = prompt.rpartition(question)
        if not found:
            before, question, after = "", prompt, ""
        if len(self._prompt_ids(before + after)) > max_tokens:
            raise DataError(
                f"a prompt leaves no room for its question: {len(self._prompt_ids(before + after))} tokens without it, "
                f"{max(max_tokens, 0)} allowed beside image and answer; shorten the instruction or the answer "
                f"(the prompt begins {prompt[:60]!r})"
            )
        # By halving, in characters: `low` of them fit and `high` do not. Tokens cannot be cut without changing others.
        low, high = 0, len(question)
        while high - low > 1:
            middle = (low + high) // 2
            fits = len(self._prompt_ids(before + question[:middle] + after)) <= max_tokens
            low, high = (middle, high) if fits else (low, middle)
        return self._prompt_ids(before + question[:low] + after), True

    def _pad(self, ids: list[list[int]], labels: list[list[int]] | None, num_truncated: int) -> TextBatch:
        longest = max(map(len, ids))
        pad = self.special_tokens["pad_token_id"]

        def rows(lists: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in lists])

        return TextBatch(
            input_ids=rows(ids, pad),
            attention_mask=rows([[1] * len(row) for row in ids], 0),
            labels=None if labels is None else rows(labels, IGNORED),
            num_truncated=num_truncated,
        )
