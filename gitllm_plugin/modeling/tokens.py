"""Prompts and answers to token ids and labels; the same ids for a prompt in training and at inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gitllm_plugin.errors import ConfigError

IGNORED = -100


@dataclass(frozen=True)
class TextBatch:
    """Token ids of a batch of N texts.

    Attributes:
        input_ids: long ``[N, T]``.
        attention_mask: long ``[N, T]``, 1 on real tokens; padding is on the right.
        labels: long ``[N, T]``, ``-100`` where a token is not trained on; None for prompts alone.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class TextEncoder:
    """Turns prompts and answers into a :class:`TextBatch`.

    Attributes:
        tokenizer: the language model's own tokenizer; its special tokens in front of a text (BOS) are kept.
        loss_on: "answer": answer and end token are trained on; "all": every text token (the article's).
    """

    tokenizer: PreTrainedTokenizerBase
    loss_on: Literal["answer", "all"] = "answer"

    def __post_init__(self) -> None:
        if self.loss_on not in ("answer", "all"):
            raise ConfigError(f"loss_on is {self.loss_on!r}; it may be 'answer' or 'all'")

    @property
    def special_tokens(self) -> dict[str, int]:
        """End and padding token for generation, the ones of training."""
        end = cast(int, self.tokenizer.eos_token_id)
        pad = cast("int | None", self.tokenizer.pad_token_id)
        return {"eos_token_id": end, "pad_token_id": end if pad is None else pad}

    def prompts(self, prompts: list[str]) -> TextBatch:
        """Encode prompts for generation."""
        return self._pad([self._prompt_ids(prompt) for prompt in prompts], None)

    def prompts_and_answers(self, prompts: list[str], answers: list[str]) -> TextBatch:
        """Encode prompts followed by " answer" and the end token, with labels."""
        ids, labels = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            before = self._prompt_ids(prompt)
            after = self._ids(" " + answer.strip()) + [self.tokenizer.eos_token_id]
            ids.append(before + after)
            labels.append((before if self.loss_on == "all" else [IGNORED] * len(before)) + after)
        return self._pad(ids, labels)

    def decode(self, token_ids: Tensor) -> list[str]:
        """Generated ids ``[N, L]`` to answers, without special tokens and outer white space."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids = self.tokenizer(prompt)["input_ids"]
        # Some tokenizers close every text with the end token; here the answer still follows.
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        # Something must stand before an answer: its first token is not predicted from the image.
        start = cast("int | None", self.tokenizer.bos_token_id)
        return ids or [self.special_tokens["eos_token_id"] if start is None else start]

    def _pad(self, ids: list[list[int]], labels: list[list[int]] | None) -> TextBatch:
        longest = max(map(len, ids))
        pad = self.special_tokens["pad_token_id"]

        def rows(lists: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in lists])

        return TextBatch(
            input_ids=rows(ids, pad),
            attention_mask=rows([[1] * len(row) for row in ids], 0),
            labels=None if labels is None else rows(labels, IGNORED),
        )
