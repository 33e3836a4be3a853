"""`metrics.jsonl`: one line per optimizer step, for loss curves."""

import json
import os
from pathlib import Path
from typing import Any


def _kept_lines(path: Path, first_step: int) -> list[str]:
    """Complete lines of steps before `first_step`; a line cut off by a crash is dropped."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] < first_step:
            kept.append(line + "\n")
    return kept


class MetricsFile:
    """Appends records, each flushed at once.

    Args:
        path: The file; made if it does not exist.
        first_step: The step the run starts or resumes at. Records from it on belong to steps that were lost
            and are taken out, so that the file has each step once.
    """

    def __init__(self, path: Path, first_step: int):
        lines = _kept_lines(path, first_step) if path.is_file() else []
        kept = path.with_name(f".{path.name}")
        kept.write_text("".join(lines))
        os.replace(kept, path)
        self.file = open(path, "a")  # noqa: SIM115 - open as long as the epoch lasts

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
