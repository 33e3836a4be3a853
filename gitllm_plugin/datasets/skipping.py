"""What of a data set cannot be used: stopped at, or skipped, counted and told."""

import logging
from typing import Literal

import torch
from torch.utils.data import get_worker_info

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Text
from gitllm_plugin.m3it.problems import KINDS, Problem, RowError, summarize_problems
from gitllm_plugin.protocols import TextRule

OnError = Literal["stop", "skip"]

MAX_REPLACEMENTS = 1000
"""So many items one after another may be broken."""

MAX_WORKERS = 256
_MAX_WARNINGS = 10
_MAX_LISTED = 10


class Skipped:
    """Counts of what could not be read, which the processes of a loader share."""

    def __init__(self) -> None:
        # One row a worker, in shared memory: the main process sees what its workers count.
        self._counts = torch.zeros(MAX_WORKERS, len(KINDS), dtype=torch.int64).share_memory_()

    def note(self, error: RowError) -> None:
        """Count one; warn of it while there are few, and of the sum at each power of ten.

        So a folder that is damaged all over does not fill the log.
        """
        counts = self._mine
        counts[list(KINDS).index(error.kind)] += 1
        if counts.sum() <= _MAX_WARNINGS:
            logging.warning("Skipped: %s", error)
        # Of all workers, which may step over a power of ten together: then the next one is told.
        total = self.total
        if total >= _MAX_WARNINGS and total == 10 ** (len(str(total)) - 1):
            logging.warning("So far this rank could not read %d items: %s", total, self.by_kind())

    def forget(self) -> None:
        """Let this worker count anew."""
        self._mine.zero_()

    def of_this_worker(self) -> dict[str, int]:
        """Count by kind."""
        return _by_kind(self._mine)

    def by_kind(self) -> dict[str, int]:
        """Count by kind what all workers of this rank skipped."""
        return _by_kind(self._counts.sum(0))

    @property
    def total(self) -> int:
        """All of it."""
        return int(self._counts.sum())

    @property
    def _mine(self) -> torch.Tensor:
        info = get_worker_info()
        return self._counts[(info.id if info else 0) % MAX_WORKERS]


def find_fault(rule: TextRule, prompt: str, text: Text, images: int) -> tuple[str, str] | None:
    """Find why a model cannot read a text: the kind of it, and what is wrong.

    Args:
        rule: the model's.
        prompt: of the text.
        text: with its answers.
        images: how many there are.
    """
    if marks := rule.marks_fault(prompt, images if text.images is None else text.images):
        return "wrong_value", marks
    # Of two answers the longer one: which tasks read both is not known here.
    answer = max(text.answers[0], text.rejected or "", key=len)
    fault = rule.fault(prompt, answer, text.question, images)
    return ("too_long", fault) if fault else None


def refuse_or_tell(where: str, problems: list[Problem], on_error: OnError) -> None:
    """Say, before anything is read, which texts the model cannot read.

    Args:
        where: the data, for the message.
        problems: all there are; may be empty.
        on_error: ``skip`` only warns.

    Raises:
        DataError: with ``stop``; the first ten by name.
    """
    if not problems:
        return
    if on_error == "skip":
        logging.warning("%s: %s", where, summarize_problems(problems))
        return
    more = [f"... and {len(problems) - _MAX_LISTED:,} more"] if len(problems) > _MAX_LISTED else []
    listed = "\n  ".join([*map(str, problems[:_MAX_LISTED]), *more])
    one = len(problems) == 1
    if any(problem.kind != "too_long" for problem in problems):
        raise DataError(
            f"{where}: {len(problems):,} {'text' if one else 'texts'} cannot be read by this model:\n  {listed}\n"
            "Mend them, or set the data set's on_error: skip to go without them."
        )
    noun = "text does" if one else "texts do"
    raise DataError(
        f"{where}: {len(problems):,} {noun} not fit into the model's context, however short the question:\n  {listed}\n"
        "Shorten them, take a language model with a longer context or smaller images, or set the data set's "
        "on_error: skip to go without them."
    )


def too_many_error(skipped: Skipped, number: int, what: str) -> DataError:
    """Make the error for so many items that are all broken."""
    return DataError(
        f"{number} items one after another could not be read: {skipped.by_kind()}. "
        f"The warnings above name the first of them; look at {what}."
    )


def _by_kind(counts: torch.Tensor) -> dict[str, int]:
    return {kind: count for kind, count in zip(KINDS, counts.tolist(), strict=True) if count}
