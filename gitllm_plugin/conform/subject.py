"""An engine beside its reference: what it answers, what is right, and what faults would make of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from gitllm_plugin.conform.asked import QUESTIONS, Asked
from gitllm_plugin.conform.engine import TOLERANCES, offers, tolerance_of
from gitllm_plugin.conform.measure import Analysis, Answer, analyse
from gitllm_plugin.conform.readings import ALONE, Fault
from gitllm_plugin.conform.reference import Reference
from gitllm_plugin.errors import ConfigError

FIRST_PICTURE = "the answers are about the picture that was asked about first"
PICTURE_BEFORE = "the answers are about the picture of the question before"

_NEW_TOKENS = 6
_THEN = 3
_QUESTIONS = 4
_EXAMINED = 40
_TELLING = 2
_IN_COMPANY = 4
_SURE = 0.2  # the largest difference of thousands of logits is several times that of two certain ones


class EngineFailure(Exception):
    """The engine raised, or gave what cannot be compared."""


class Subject:
    """An engine that is asked.

    Args:
        engine: see :class:`~gitllm_plugin.conform.engine.Engine`.
        reference: the model that it should compute.
        tolerance: what logits may differ, as a share of the largest; None: by the engine's precision.

    Attributes:
        gives_logits: whether logits are compared, else texts.
        tolerance: of logits.

    Raises:
        ConfigError: it is no engine, or of an unknown precision.
    """

    def __init__(self, engine: Any, reference: Reference, tolerance: float | None = None) -> None:
        self.engine, self.reference = engine, reference
        self.tolerance = tolerance_of(engine) if tolerance is None else tolerance
        self.gives_logits = offers(engine, "logits")
        self._moved: dict[tuple[int, int], Asked] = {}

    @cached_property
    def questions(self) -> list[Asked]:
        """Questions of different lengths about a picture each, whose answers tell faults apart."""
        asking = self.reference.asking
        if self.gives_logits:
            texts = QUESTIONS[:_QUESTIONS]
            return [self._with_answer(asking.ask(asking.pictures(n), text)) for n, text in enumerate(texts)]
        return self._telling_questions()

    @cached_property
    def one_question(self) -> list[Asked]:
        """The same question about different pictures; with different answers, if there are such."""
        if self.gives_logits:
            return [self._with_answer(each) for each in self.reference.asking.one_question(_QUESTIONS)]
        found: list[Asked] = []
        for text in QUESTIONS:
            asked = self.reference.asking.one_question(2 * _QUESTIONS, text)
            by_answer = {self.right(each): each for each in asked if self.is_sure(each)}
            found = max(found, [*by_answer.values()][:_QUESTIONS], key=len)
            if len(found) > 1:
                break
        return found or self.questions[:1]

    def about_several(self, images: int) -> list[Asked]:
        """Questions about several pictures each."""
        asking = self.reference.asking
        asked = [asking.ask(asking.pictures(100 + n, images), QUESTIONS[n]) for n in range(2)]
        return [self._with_answer(each) for each in asked] if self.gives_logits else asked

    def about(self, pictures: tuple[Image.Image, ...], asked: Asked) -> Asked:
        """Ask the same about other pictures."""
        key = id(pictures), id(asked)
        if key not in self._moved:
            self._moved[key] = self.reference.asking.ask(pictures, asked.question).followed_by(asked.then)
        return self._moved[key]

    def forget(self) -> None:
        """Let the engine forget earlier questions, if it can."""
        if offers(self.engine, "forget"):
            self.engine.forget()

    def found(self, asked: Sequence[Asked], every: bool = False) -> list[Answer]:
        """Ask the engine, in one call.

        Raises:
            EngineFailure: it has no such answer.
        """
        try:
            if not self.gives_logits:
                return [text.strip() for text in self.engine.texts(asked, _NEW_TOKENS)]
            answers = list(self.engine.every(asked) if every else self.engine.logits(asked))
        except Exception as error:  # of whatever kind, in engines of others
            raise EngineFailure(f"{type(error).__name__}: {error}") from error
        shapes = [self.reference.logits(each, every=every).shape for each in asked]
        if [np.shape(answer) for answer in answers] != shapes:
            raise EngineFailure(f"logits of shapes {[np.shape(answer) for answer in answers]}, expected {shapes}")
        if not all(np.isfinite(answer).all() for answer in answers):
            raise EngineFailure("logits that are no numbers")
        return answers

    def search(self, asked: Sequence[Asked], num_beams: int, new_tokens: int) -> list[tuple[list[int], float]]:
        """Let the engine search with beams, all questions at once if it can.

        Raises:
            EngineFailure: it raised, or gave answers of another length.
        """
        parts = [asked] if offers(self.engine, "batches") else [[each] for each in asked]
        try:
            found = [each for part in parts for each in self.engine.beams(part, num_beams, new_tokens)]
            found = [([int(token) for token in tokens], float(likelihood)) for tokens, likelihood in found]
        except Exception as error:  # of whatever kind, in engines of others
            raise EngineFailure(f"{type(error).__name__}: {error}") from error
        lengths = [len(tokens) for tokens, _ in found]
        if lengths != [new_tokens] * len(asked):
            raise EngineFailure(f"answers of {lengths} tokens, expected {len(asked)} of {new_tokens}")
        return found

    def alone(self, asked: Asked, every: bool = False) -> Answer:
        """Ask one question, with nothing before it that the engine could not forget."""
        self.forget()
        return self.found([asked], every)[0]

    def right(self, asked: Asked, fault: Fault | None = None) -> Answer:
        """Give what is right; or with a fault, what that makes of it."""
        if self.gives_logits:
            return self.reference.logits(asked, fault)
        return self.reference.answer(asked, _NEW_TOKENS, fault).strip()

    def is_sure(self, asked: Asked) -> bool:
        """Tell whether an engine that is right must have the right answer: of two likely tokens it may take either."""
        return self.gives_logits or self.reference.margin(asked, _NEW_TOKENS) > _SURE * self.tolerance

    def baseline(self, asked: Asked) -> Answer:
        """Give what an answer in company is compared with: the reference's, or the engine's own where that is wrong."""
        can_be_alone = offers(self.engine, "forget") or not self.blamed & {FIRST_PICTURE, PICTURE_BEFORE}
        return self.right(asked) if self.reads_right or not can_be_alone else self.alone(asked)

    @cached_property
    def reading(self) -> list[Analysis]:
        """How it reads one question alone: for an answer and, if it can, whole texts at once."""
        return self.read(self.questions, ALONE)

    @property
    def reads_right(self) -> bool:
        """Whether one question alone has the answer that it should have."""
        return self.reading[0].is_right

    @property
    def tolerance_in_company(self) -> float:
        """What an answer that was not asked alone may differ: a few times what rounding makes of one that was."""
        rounding = _IN_COMPANY * self.reading[0].difference
        return min(self.tolerance, max(rounding, TOLERANCES["float32"])) if self.reads_right else self.tolerance

    @property
    def blamed(self) -> set[Hashable]:
        """What explains that it has not."""
        return {way.blamed for way in self.reading}

    def read(self, questions: Sequence[Asked], faults: Sequence[Fault]) -> list[Analysis]:
        """Compare questions that are asked one by one with the reference."""
        found, right = [self.alone(each) for each in questions], [self.right(each) for each in questions]
        if not self.gives_logits and found == right:
            # What faults would answer, which takes long, is of no interest then; only whether it were another answer.
            untold = {fault for fault in faults if not any(self._tells(each, fault) for each in questions)}
            return [Analysis(0.0, True, None, frozenset(untold))]
        wrong: dict[Hashable, list[Answer]] = {}
        for fault in faults:
            wrong[fault] = [self.right(each, fault) for each in questions]
        pictures = [each.pictures for each in questions]
        for name, others in ((FIRST_PICTURE, pictures[:1] * len(pictures)), (PICTURE_BEFORE, pictures[:1] + pictures)):
            wrong[name] = [self.right(self.about(*pair)) for pair in zip(others, questions, strict=False)]
        ways = [analyse(found, right, wrong, self.tolerance)]
        if self.gives_logits and offers(self.engine, "every"):
            ways.append(self._read_whole(questions, faults))
        return ways

    def _read_whole(self, questions: Sequence[Asked], faults: Sequence[Fault]) -> Analysis:
        found, logits = [self.alone(each, every=True) for each in questions], self.reference.logits
        wrong = {fault: [logits(each, fault, every=True) for each in questions] for fault in faults}
        return analyse(found, [logits(each, every=True) for each in questions], wrong, self.tolerance)

    def _with_answer(self, asked: Asked) -> Asked:
        return asked.followed_by(tuple(self.reference.tokens(asked, _THEN, ends=False)))

    def _telling_questions(self) -> list[Asked]:
        """Find questions whose answers faults change, two for each fault if there are.

        Raises:
            ConfigError: the model is sure of no answer.
        """
        missing, kept = dict.fromkeys(ALONE, _TELLING), []
        for asked in islice(self.reference.asking.all(), _EXAMINED):
            if not any(missing.values()):
                break
            if not self.is_sure(asked):
                continue
            tells = [fault for fault, number in missing.items() if number and self._tells(asked, fault)]
            if tells or len(kept) < _TELLING:
                kept.append(asked)
                missing.update({fault: missing[fault] - 1 for fault in tells})
        if len(kept) < _TELLING:
            raise ConfigError(
                f"of {_EXAMINED} questions there are {len(kept)} whose answer this model is so sure of that rounding "
                f"in {self.engine.precision} does not change it: texts cannot be compared"
            )
        return kept

    def _tells(self, asked: Asked, fault: Fault) -> bool:
        """Tell whether a fault changes an answer, by one reading of the right one."""
        behind = asked.followed_by(tuple(self.reference.tokens(asked, _NEW_TOKENS)))
        right, wrong = (self.reference.logits(behind, each)[:_NEW_TOKENS].argmax(1) for each in (None, fault))
        return bool((right != wrong).any())
