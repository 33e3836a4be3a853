"""Rows of questions from a file or a pipe, answered into a file or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.asking import Answering, Decoding
from gitllm_plugin.inference.journal import FORMATS, Journal
from gitllm_plugin.inference.predicting import predict

Row = Mapping[str, Any] | DataError


@dataclass(frozen=True)
class Job:
    """What is answered, and where to.

    Attributes:
        rows: see :func:`~gitllm_plugin.inference.predicting.predict`.
        folder: that the rows' paths are relative to.
        total: number of rows, where it is known.
        answer: the key of the answers in what is written.
        output: the file to write; None: ``show`` takes the records.
        show: takes each record as soon as there is one, where there is no file.
        input: what tells these rows from others, of plain values: a new start with the same goes on where the last one
            was. None: nobody can tell, and each start begins anew.
        reads: files that are read, which the output may not replace.
    """

    rows: Iterable[Row]
    folder: Path
    total: int | None
    answer: str
    output: Path | None
    show: Callable[[dict[str, Any]], None]
    input: Mapping[str, Any] | None
    reads: Sequence[Path] = ()


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        answered: number of answers, those of earlier starts included.
        errors: of the rows that have none, in their order.
    """

    answered: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count records."""
        for record in records:
            if "error" in record:
                self.errors.append(record["error"])
            else:
                self.answered += 1


def run_job(
    job: Job,
    model: str,
    open_model: Callable[[str], Answering],
    instruction: str | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 8,
) -> Outcome:
    """Answer all rows, with a bar on a terminal.

    Args:
        job: what is answered.
        model: as ``open_model`` takes it.
        open_model: loads it, when all else is found to be right.
        instruction, decoding, batch_size: as for :func:`~gitllm_plugin.inference.predicting.predict`.

    Raises:
        ConfigError: a setting is out of its range, or the output cannot be gone on with, or is an input.
        StorageError: the output cannot be written; what was answered is kept.
    """
    decoding = decoding or Decoding()
    decoding.as_arguments()
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}; at least 1")
    outcome = Outcome()
    settings = {"model": os.path.realpath(os.path.expanduser(model)), "instruction": instruction, **asdict(decoding)}
    with _open_journal(job, settings) as journal:
        done = 0 if journal is None else journal.done
        if journal is not None:
            outcome.add(journal.records())
        pipeline = open_model(model)
        # On one terminal the lines that are shown tell how far it is, and a bar would be drawn into them.
        shown = job.output is None and sys.stdout.isatty()
        hidden = shown or not sys.stderr.isatty()
        with tqdm(total=job.total, initial=done, unit=" rows", disable=hidden) as bar:

            def keep(records: Sequence[dict[str, Any]]) -> None:
                outcome.add(records)
                if journal is not None:
                    journal.append(records)
                for record in records if journal is None else ():
                    job.show(record)
                bar.update(len(records))

            rows, settings = islice(job.rows, done, None), {"instruction": instruction, "decoding": decoding}
            predict(pipeline, rows, job.folder, keep, answer=job.answer, batch_size=batch_size, **settings)
        if journal is not None:
            journal.finish()
    return outcome


@contextmanager
def _open_journal(job: Job, settings: Mapping[str, Any]) -> Iterator[Journal | None]:
    """Open the journal of a job that writes a file, and say what is in it; it stays, however the block ends."""
    if job.output is None:
        yield None
        return
    target = job.output.expanduser()
    if target.exists() and any(path.exists() and path.samefile(target) for path in job.reads):
        raise ConfigError(f"{job.output} is what is read, and would be replaced; name another file to write")
    if target.suffix.lower() not in FORMATS and not target.is_dir():
        raise ConfigError(f"{job.output} ends in {target.suffix!r}; what can be written ends in {' or '.join(FORMATS)}")
    journal = Journal(job.output, {**settings, **(job.input or {})}, anew=job.input is None)
    if journal.done:
        print(
            f"{journal.path} holds {journal.done:,} records of an earlier start: going on behind them", file=sys.stderr
        )
    try:
        yield journal
    finally:
        journal.close()
