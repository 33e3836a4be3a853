"""A file of answers, there whole or not at all; until then a journal has them, which a new start goes on with."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gitllm_plugin.common.files import atomic_file, storage_error
from gitllm_plugin.errors import ConfigError, StorageError

FORMATS = (".jsonl", ".csv")
_ENDING = ".progress"


class Journal:
    """Answers on their way to a file.

    The journal, ``<file>.progress``, holds what was asked for in its first line and then a line a record.

    Args:
        target: the file to make, ``.csv`` or lines of JSON.
        asked: what the answers follow from (model, decoding, input), of plain values.
        anew: begin anew, whatever an earlier start left.

    Attributes:
        done: records that an earlier start has written.

    Raises:
        ConfigError: a journal of something else is there.
        StorageError: it cannot be written.
    """

    def __init__(self, target: str | Path, asked: Mapping[str, Any], anew: bool = False) -> None:
        self.target = Path(target).expanduser()
        if self.target.is_dir():
            raise ConfigError(f"{self.target} is a folder; name a file to write")
        self.path = self.target.with_name(self.target.name + _ENDING)
        self.done = 0
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                self.path.unlink(missing_ok=True)
            elif self.path.exists():
                self._resume(asked)
            self._file = open(self.path, "ab")  # noqa: SIM115 - closed by finish or close
            if not self._file.tell():
                self._write([dict(asked)])
        except OSError as error:
            raise self._storage_error(error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep some records, so that they outlast a kill.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self._write(records)
        except OSError as error:
            raise self._storage_error(error) from error

    def finish(self) -> None:
        """Give the file its content and its name, and remove the journal.

        Raises:
            StorageError: the disk is full; the journal stays.
        """
        try:
            self._file.close()
            with atomic_file(self.target) as file:
                if self.target.suffix.lower() == ".csv":
                    _write_csv(file, self._columns(), self.records())
                else:
                    for record in self.records():
                        file.write(_line(record))
            self.path.unlink()
        except OSError as error:
            raise self._storage_error(error) from error

    def close(self) -> None:
        """Leave off; a new start goes on here. A journal of no answer is removed."""
        # Closing flushes once more what a full disk refused: the same error would hide the one that names the file.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            if not self._has_answer():
                self.path.unlink(missing_ok=True)

    def records(self) -> Iterator[dict[str, Any]]:
        """Read what is kept."""
        with open(self.path, "rb") as file:
            next(file)
            yield from map(json.loads, file)

    def _has_answer(self) -> bool:
        with open(self.path, "rb") as file:
            return len([line for line in islice(file, 2) if line.endswith(b"\n")]) == 2

    def _resume(self, asked: Mapping[str, Any]) -> None:
        content = self.path.read_bytes()
        # Of a kill in the middle of a line.
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            found = json.loads(lines[0]) if lines else None
            records = [json.loads(line) for line in lines[1:]]
        except ValueError as error:
            raise ConfigError(
                f"{self.path} is not what was written there ({error}); delete it to begin anew"
            ) from error
        if found is not None and found != asked:
            differ = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
            told = "; ".join(f"{key} was {found.get(key)!r:.100} and is {asked.get(key)!r:.100}" for key in differ)
            raise ConfigError(
                f"{self.path} holds answers of another start ({told}). Ask for the same to go on, name another file, "
                "or delete it to begin anew"
            )
        self.done = len(records)
        with open(self.path, "rb+") as file:
            file.truncate(len(whole))

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(b"".join(map(_line, records)))
        self._file.flush()

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(key for record in self.records() for key in record))

    def _storage_error(self, error: OSError) -> StorageError:
        told = error if isinstance(error, StorageError) else storage_error(error.filename or self.path, error)
        return StorageError(f"{told} What was answered is kept in {self.path}, and a new start goes on with it.")


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _write_csv(file: Any, columns: list[str], records: Iterator[dict[str, Any]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for record in records:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in record.items()})
    text.flush()
    text.detach()
