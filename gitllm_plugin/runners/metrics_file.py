"""`metrics.jsonl` and `evaluations.jsonl`: one line per optimizer step or evaluation, for loss curves."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import StorageError

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"


def take_out_lost_steps(path: Path, epoch: int, step: int) -> None:
    """Leave each step once in the records of a run to be resumed.

    Taken out are the records that a checkpoint does not hold, and a line cut off by a crash.

    Args:
        path: The file; nothing is done where it does not exist.
        epoch: The epoch in which the checkpoint stands.
        step: The steps that were done when it was written. Only in its epoch are they compared: another batch
            size numbers later epochs differently.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["epoch"] < epoch or (record["epoch"] == epoch and record["step"] < step):
            kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


class MetricsFile:
    """Appends records, each flushed at once.

    Args:
        path: The file; made if it does not exist.
    """

    def __init__(self, path: Path):
        self.file = open(path, "a")  # noqa: SIM115 - open as long as the epoch lasts

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            StorageError: The disk is full.
        """
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise StorageError(f"{self.file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; what could not be written was reported when it was tried."""
        with contextlib.suppress(OSError):
            self.file.close()
