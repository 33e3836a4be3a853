"""Reads what runs of the plugin leave in their folders."""

import json
from pathlib import Path
from typing import Any

from examples.easyvqa.data import read_rows
from examples.easyvqa.errors import DemoError

BEST_CHECKPOINT = "checkpoint_best.pth"
METRICS = "test_metrics.json"
PREDICTIONS = "result/test_epochbest.jsonl"
VERSIONS = "versions.json"


def newest_run(folder: Path, file: str) -> Path:
    """Give the run below ``folder`` whose ``file`` was written last.

    Raises:
        DemoError: no run has the file.
    """
    runs = [run for run in folder.glob("*") if not run.is_symlink() and (run / file).is_file()]
    if not runs:
        raise DemoError(f"there is no run with {file} in {folder}; see the messages above")
    return max(runs, key=lambda run: (run / file).stat().st_mtime_ns)


def read_predictions(run: Path) -> list[dict[str, Any]]:
    """Give the answered examples of an evaluation: ``instance_id``, ``config``, ``prediction``, ``exact_match``, ..."""
    return read_rows(run / PREDICTIONS)


def read_accuracies(run: Path) -> dict[str, float]:
    """Exact match by configuration, between 0 and 1."""
    metrics = json.loads((run / METRICS).read_text())
    ending = "/exact_match"
    return {key.removesuffix(ending): value for key, value in metrics.items() if key.endswith(ending)}


def read_versions(run: Path) -> dict[str, Any]:
    """Say what the run was made with: Python, platform, packages, source revision, command."""
    return json.loads((run / VERSIONS).read_text())
