"""Reads what runs of the plugin leave in their folders."""

import json
from pathlib import Path
from typing import Any

from examples.easyvqa.data import read_rows
from examples.easyvqa.errors import DemoError
from gitllm_plugin.common.run_files import linked_run

BEST_CHECKPOINT = "checkpoint_best.pth"
METRICS = "test_metrics.json"
PREDICTIONS = "result/test_epochbest.jsonl"
VERSIONS = "versions.json"


def newest_run(folder: Path, name: str, file: str) -> Path:
    """Give the run below ``folder`` that was trained or evaluated last.

    Args:
        folder: ``run.output_dir``.
        name: of the link to it, see :func:`~gitllm_plugin.common.run_files.linked_run`.
        file: what it wrote when it was done.

    Raises:
        DemoError: there is none, or it has no such file.
    """
    run = linked_run(folder, name)
    if run is None or not (run / file).is_file():
        raise DemoError(f"there is no {name} run with {file} in {folder}; see the messages above")
    return folder / run.name


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
