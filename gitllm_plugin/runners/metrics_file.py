"""`metrics.jsonl` and `evaluations.jsonl`: one line per optimizer step or evaluation, for loss curves."""

import json
import os
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"


def take_out_lost_steps(path: Path, epoch: int, step: int) -> None:
    """Leave each step once in the metrics of a run to be resumed.

    Taken out are the steps that a checkpoint does not hold, and a line cut off by a crash.

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
        """Append one record."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
