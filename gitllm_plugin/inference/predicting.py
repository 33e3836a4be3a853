"""Many questions: answered in batches, and what cannot be answered is told and hurts no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.inference.questions import BASE64, read_question
from gitllm_plugin.m3it.pictures import read_pixels


def predict(
    pipeline: Answering,
    rows: Iterable[Mapping[str, Any] | DataError],
    folder: Path,
    keep: Callable[[list[dict[str, Any]]], None],
    *,
    answer: str = "answer",
    instruction: str | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 8,
) -> None:
    """Answer rows, see :func:`~gitllm_plugin.inference.questions.read_question`.

    Args:
        pipeline: the model.
        rows: in their order; an error stands for one that cannot be read.
        folder: that the rows' paths are relative to.
        keep: takes the records of each batch: a row's keys, but for pictures in base64, and under ``answer`` its answer
            or under ``error`` why there is none.
        answer: the key.
        instruction: for rows that have none; None: the model's usual one.
        decoding, batch_size: as for :func:`answer_each`.
    """
    waiting: list[Mapping[str, Any]] = []

    def questions() -> Iterator[Question | DataError]:
        for row in rows:
            waiting.append({} if isinstance(row, DataError) else row)
            yield row if isinstance(row, DataError) else _read(row, folder, instruction)

    for answers in answer_each(pipeline, questions(), decoding, batch_size):
        taken, waiting[:] = waiting[: len(answers)], waiting[len(answers) :]
        keep([_record(row, given, answer) for row, given in zip(taken, answers, strict=True)])


def answer_each(
    pipeline: Answering,
    questions: Iterable[Question | DataError],
    decoding: Decoding | None = None,
    batch_size: int = 8,
) -> Iterator[list[str | DataError]]:
    """Answer questions in their order, a batch at a time.

    Args:
        pipeline: the model.
        questions: any number; they are taken when their batch is due. An error stands for one that cannot be read.
        decoding: how answers are searched for; None: greedily.
        batch_size: questions at a time.

    Yields:
        As many answers as questions were taken: a text, or why there is none.
    """
    for batch in _batches(questions, batch_size):
        pixels: dict[tuple, Any] = {}
        read = [_with_pixels(question, pixels) for question in batch]
        yield _answer(pipeline, read, decoding)


def _read(row: Mapping[str, Any], folder: Path, instruction: str | None) -> Question | DataError:
    try:
        question = read_question(row, folder)
    except DataError as error:
        return error
    return replace(question, instruction=instruction) if question.instruction is None else question


def _record(row: Mapping[str, Any], given: str | DataError, answer: str) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key not in (BASE64, answer, "error")}
    return {**kept, "error": str(given)} if isinstance(given, DataError) else {**kept, answer: given}


def _batches(questions: Iterable[Question | DataError], size: int) -> Iterator[list[Question | DataError]]:
    batch: list[Question | DataError] = []
    for question in questions:
        batch.append(question)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_pixels(question: Question | DataError, pixels: dict[tuple, Any]) -> Question | DataError:
    """Decode a question's pictures, unless an earlier question of the batch had the same."""
    if isinstance(question, DataError):
        return question
    key = question.same_pictures()
    try:
        if key not in pixels:
            pixels[key] = tuple(read_pixels(picture) for picture in question.pictures)
    except DataError as error:
        return error
    return replace(question, pictures=pixels[key])


def _answer(
    pipeline: Answering, batch: Sequence[Question | DataError], decoding: Decoding | None
) -> list[str | DataError]:
    answers: list[str | DataError] = [each if isinstance(each, DataError) else "" for each in batch]
    asked = [(place, each) for place, each in enumerate(batch) if isinstance(each, Question)]
    try:
        found: Sequence[str | DataError] = pipeline.answers([question for _, question in asked], decoding)
    except DataError as error:
        # Of one of them, such as a text that is too long: each is asked alone.
        found = [error] if len(asked) == 1 else [_answer(pipeline, [each], decoding)[0] for _, each in asked]
    for (place, _), answer in zip(asked, found, strict=True):
        answers[place] = answer
    return answers
