"""Which steps are finished, and how long they took, over all the times that a command was started."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.errors import ConfigError


class StepRecord:
    """A JSON file with an entry per step, written anew after each change.

    Args:
        path: the file; made when something is first written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = _read(path) if path.is_file() else {}

    def start_over(self, step: str) -> None:
        """Forget a step."""
        self.entries.pop(step, None)
        self._write()

    def note(self, step: str, **values: Any) -> None:
        """Add values to a step's entry."""
        self.entries.setdefault(step, {}).update(values)
        self._write()

    def get(self, step: str, key: str) -> Any:
        """Give a value of a step's entry, None where there is none."""
        return self.entries.get(step, {}).get(key)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that the block takes, finished or not, to the step's ``seconds``."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.note(step, seconds=(self.get(step, "seconds") or 0.0) + time.monotonic() - began)

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.entries, indent=2) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values()):
            return entries
        reason = "expected an entry for each step"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise ConfigError(
        f"{path} does not say which steps are finished: it is damaged ({reason}). Restore it, or delete it to do all "
        "steps anew"
    )


def fingerprint(*paths: Path) -> str:
    """Hash files' contents; by it a step knows that its configuration has changed."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
