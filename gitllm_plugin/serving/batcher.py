"""One thread that has the model: questions wait for it in a short queue, and those of one search share a batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.inference.predicting import answer_each


class BusyError(Exception):
    """The queue is full, or the question waited too long in it."""


@dataclass
class Waiting:
    """A question on its way to the model.

    Attributes:
        question, decoding: what is asked.
        piece: for an answer that is wanted as it grows: is told the answer so far; from the thread of the model.
        until: when nobody waits for it any more, by :func:`time.monotonic`.
        answer: the answer, or why there is none. Cancelling it gives the question's place free.
    """

    question: Question
    decoding: Decoding
    piece: Callable[[str], object] | None
    until: float
    answer: Future[str] = field(default_factory=Future)


@dataclass
class Counts:
    """What became of questions, for ``/metrics``."""

    answered: int = 0
    refused: int = 0
    dropped: int = 0
    failed: int = 0
    batches: int = 0
    seconds: float = 0.0


class Batcher:
    """Answers questions in the order of their arrival, several at a time.

    Args:
        engine: the model.
        batch_size: most questions at a time.
        most_waiting: questions that may wait.
        seconds: how long a question may take, waiting included.
    """

    def __init__(self, engine: Answering, batch_size: int = 8, most_waiting: int = 64, seconds: float = 120) -> None:
        self.engine = engine
        self.batch_size = batch_size
        self.most_waiting = most_waiting
        self.seconds = seconds
        self.counts = Counts()
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of questions in the queue."""
        return len(self._queue)

    def ask(self, question: Question, decoding: Decoding, piece: Callable[[str], object] | None = None) -> Future[str]:
        """Put a question into the queue.

        Raises:
            BusyError: the queue is full.
        """
        waiting = Waiting(question, decoding, piece, time.monotonic() + self.seconds)
        with self._changed:
            # Places of those that nobody waits for any more are free.
            self._queue = deque(each for each in self._queue if not each.answer.cancelled())
            if len(self._queue) >= self.most_waiting:
                raise BusyError(f"{len(self._queue)} questions are waiting; try again in a few seconds")
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self) -> None:
        """End the thread when it has answered what it has begun."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            began = time.monotonic()
            self._answer(batch)
            self.counts.batches += bool(batch)
            self.counts.seconds += time.monotonic() - began

    def _take(self) -> list[Waiting] | None:
        """Wait for questions and take those of the first one's search; None at the end."""
        with self._changed:
            while not self._queue and not self._ends:
                self._changed.wait()
            if self._ends:
                for each in self._queue:
                    each.answer.cancel()
                return None
            first = self._queue[0]
            batch: list[Waiting] = []
            rest: deque[Waiting] = deque()
            for each in self._queue:
                # An answer that grows is alone: what it shows is of one row.
                fits = each is first or (first.piece is None is each.piece and each.decoding == first.decoding)
                if fits and len(batch) < self.batch_size:
                    batch.append(each)
                else:
                    rest.append(each)
            self._queue = rest
        return [each for each in batch if self._begins(each)]

    def _begins(self, waiting: Waiting) -> bool:
        if not waiting.answer.set_running_or_notify_cancel():
            self.counts.dropped += 1
            return False
        if time.monotonic() > waiting.until:
            self.counts.failed += 1
            waiting.answer.set_exception(BusyError(f"it waited longer than {self.seconds:g} s; try again later"))
            return False
        return True

    def _answer(self, batch: list[Waiting]) -> None:
        try:
            if len(batch) == 1 and batch[0].piece is not None:
                answers: list[str | DataError] = [self._grow(batch[0])]
            elif batch:
                questions = [each.question for each in batch]
                (answers,) = answer_each(self.engine, questions, batch[0].decoding, len(batch))
            else:
                return
        except Exception as error:  # noqa: BLE001 - told to those that asked; the thread serves the others
            self.counts.failed += len(batch)
            for each in batch:
                each.answer.set_exception(error)
            return
        for each, answer in zip(batch, answers, strict=True):
            if isinstance(answer, DataError):
                each.answer.set_exception(answer)
            else:
                self.counts.answered += 1
                each.answer.set_result(answer)

    def _grow(self, waiting: Waiting) -> str | DataError:
        question, answer = waiting.question, ""
        asked = (list(question.pictures), question.text, question.instruction)
        stream = self.engine.stream(*asked, waiting.decoding, question.turns)
        try:
            for answer in stream:
                # Who asked has gone, or has waited long enough: what there is by then is the answer.
                if not waiting.piece or waiting.piece(answer) is False or time.monotonic() > waiting.until:
                    break
        except DataError as error:
            return error
        finally:
            stream.close()  # type: ignore[attr-defined] - a generator
        return answer
