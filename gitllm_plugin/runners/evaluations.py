"""What a run's folder says of its evaluations: every one with its step, and whether the final test is done."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.metrics_file import EVALUATIONS_FILE, MetricsFile

TESTED = "tested.json"


def note_evaluation(folder: Path, split: str, position: Position, stats: dict[str, Any]) -> None:
    """Keep every evaluation of a training, for curves: LAVIS's log does not say at which step it was."""
    place = {"split": split, "step": position.steps, "iter": position.iters, "epoch": position.last_epoch}
    with contextlib.closing(MetricsFile(folder / EVALUATIONS_FILE)) as evaluations:
        evaluations.write({**place, **stats})


def note_tested(folder: Path, position: Position, splits: Sequence[str]) -> None:
    """Let a run that was interrupted in its test be told from one that is done."""
    (folder / TESTED).write_text(json.dumps({"iters": position.iters, "splits": list(splits)}) + "\n")


def is_tested(folder: Path, position: Position, splits: Sequence[str]) -> bool:
    """Whether the end of the run, as far as it is trained now, was evaluated on all of `splits`."""
    try:
        tested = json.loads((folder / TESTED).read_text())
    except (OSError, json.JSONDecodeError):  # none yet, or cut off by a crash
        return not splits
    done = tested.get("splits", []) if tested.get("iters") == position.iters else []
    return set(splits) <= set(done)
