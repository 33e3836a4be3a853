"""What is asked of all alike: texts as token ids, made from a seed; a process is told them as JSON."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PAD, IMAGE, FIRST_TEXT = 1, 2, 4
"""Token ids: of padding, of a place for an image, and the least of a text."""

Lengths = tuple[int, int]

CAPTIONS: tuple[Lengths, Lengths] = (6, 14), (8, 16)
"""Least and most tokens of prompts and of answers: a short instruction, and COCO's captions of 11 words."""
MIXED: tuple[Lengths, Lengths] = (8, 256), (2, 64)
"""The same where instructions are long and short, as in a mixture of tasks."""
QUESTIONS: tuple[Lengths, Lengths] = (10, 40), (1, 1)
"""Of prompts that are answered; the answer is not read."""


@dataclass(frozen=True)
class Text:
    """A prompt about one image, and the answer that is trained on, as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]
    image: int


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        name: says it in a table.
        kind: ``train``, ``generate`` or ``rank``.
        images: how many different ones there are.
        texts: about them; of ``generate`` and ``rank`` the prompts alone are read.
        rounds: how often it is timed.
        new_tokens: of ``generate``.
        candidates: of ``rank``: answers to the first text.
    """

    name: str
    kind: str
    images: int
    texts: Sequence[Text]
    rounds: int
    new_tokens: int = 0
    candidates: Sequence[Sequence[int]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Give plain lists and numbers."""
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Case:
        """Read what :meth:`as_json` gave."""
        return Case(**{**found, "texts": [Text(**text) for text in found["texts"]]})

    @property
    def supervised(self) -> int:
        """How many tokens are trained on."""
        return sum(len(text.answer) for text in self.texts)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(text.prompt) + len(text.answer) for text in self.texts)


@dataclass(frozen=True)
class Amounts:
    """How much work; the defaults suit models of some hundred million weights on one thread.

    Attributes:
        captions, mixed: images with one text each, of short texts and of mixed lengths; 0 of these leaves them out.
        texts: about one image, where there are several.
        batches: prompts that are answered at once.
        new_tokens: of each answer.
        candidates: answers that are ranked.
        rounds: of a training step on short texts; larger work is timed less often.
    """

    captions: int = 2
    mixed: int = 3
    texts: int = 5
    batches: Sequence[int] = (1, 8, 32)
    new_tokens: int = 16
    candidates: int = 1000
    rounds: int = 4

    def rounds_of(self, prompts: int) -> int:
        """Say how often a batch of so many prompts is answered."""
        return max(1, self.rounds // (1 + prompts // 8))


def training(vocabulary: int, amounts: Amounts) -> list[Case]:
    """Give steps with one text and with several an image, of short texts and of mixed lengths."""
    draw = _Draw(vocabulary, seed=0)
    rounds, fewer = amounts.rounds, max(1, amounts.rounds // 2)
    sizes = (
        ("captions", CAPTIONS, amounts.captions, 1, rounds),
        ("captions", CAPTIONS, 1, amounts.texts, rounds),
        ("mixed lengths", MIXED, amounts.mixed, 1, fewer),
        ("mixed lengths", MIXED, 1, amounts.texts, fewer),
    )
    return [
        Case(f"{name}, {_sizes(images, texts)}", "train", images, draw.texts(images, texts, lengths), times)
        for name, lengths, images, texts, times in (sizes if amounts.mixed else sizes[:2])
    ]


def answering(vocabulary: int, amounts: Amounts) -> list[Case]:
    """Give prompts to continue, each about a picture of its own or eight about one."""
    draw = _Draw(vocabulary, seed=1)
    sizes = [(f"batch of {size}", size, 1) for size in amounts.batches]
    return [
        Case(name, "generate", images, draw.texts(images, texts, QUESTIONS), amounts.rounds_of(images * texts), tokens)
        for name, images, texts in [*sizes, ("eight questions about one picture", 1, 8)]
        for tokens in (amounts.new_tokens,)
    ]


def ranking(vocabulary: int, amounts: Amounts) -> Case:
    """Give short answers to one question, to be put in an order."""
    draw = _Draw(vocabulary, seed=2)
    answers = [draw.tokens((1, 8)) for _ in range(amounts.candidates)]
    name = f"{amounts.candidates} answers"
    return Case(name, "rank", 1, draw.texts(1, 1, QUESTIONS), 1, candidates=answers)


def probe(vocabulary: int) -> Case:
    """Give texts of unequal lengths about two images, on which programs are compared before they are timed."""
    return Case("probe", "train", 2, _Draw(vocabulary, seed=3).texts(2, 2, CAPTIONS), 1)


def _sizes(images: int, texts: int) -> str:
    return f"{images} image{'s' if images > 1 else ''} with {texts} text{'s' if texts > 1 else ''} each"


class _Draw:
    """Random texts. Lengths are uniform in their logarithm, so that short ones are as frequent as long ones."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._vocabulary = vocabulary

    def tokens(self, lengths: Lengths) -> list[int]:
        low, high = (math.log(length) for length in lengths)
        count = round(math.exp(self._random.uniform(low, high)))
        return [self._random.randrange(FIRST_TEXT, self._vocabulary) for _ in range(count)]

    def texts(self, images: int, each: int, lengths: tuple[Lengths, Lengths]) -> list[Text]:
        prompts, answers = lengths
        return [Text(self.tokens(prompts), self.tokens(answers), n // each) for n in range(images * each)]
