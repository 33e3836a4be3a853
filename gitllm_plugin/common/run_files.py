"""The names of the files of a run, and which of its weights are meant by its folder or its own configuration."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.config.options import as_assignments

BEST = "checkpoint_best.pth"
LATEST = "checkpoint_latest.pth"
CONFIG = "config.yaml"
"""How the run was made, beside them."""

STEPS = "checkpoints"
"""Folder of the files by step, of which :data:`BEST` and :data:`LATEST` are two."""

LATEST_RUN, LATEST_EVALUATION = "latest", "latest_evaluation"
"""Beside the folders of runs: which was trained last, and which was evaluated last."""


def linked_run(output_dir: Path, name: str = LATEST_RUN) -> Path | None:
    """Find the folder of the run that was trained last below ``run.output_dir``; None where none is known.

    Args:
        output_dir: the folder above those of the runs.
        name: :data:`LATEST_EVALUATION` for the one that was evaluated last. It is a link or, where no links can be
            made, a text file with the folder's path.
    """
    link = output_dir / name
    folder = Path(link.read_text(encoding="utf-8").strip()) if link.is_file() else link
    return folder.resolve() if folder.is_dir() else None


def read_records(path: Path, counted: Sequence[str] = ("step",)) -> list[tuple[bytes, dict[str, Any]]]:
    """Read the records of a run, a line each: the line with its end, and what it says; none where there is no file.

    Lines that are no records, cut off by a crash or damaged, are left out, and a warning says how many.

    Args:
        path: the file.
        counted: what a record has at least, whole numbers. A loss, if it has one, is a number or null.
    """
    records, lost = [], 0
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not _is_record(record, counted):
            lost += bool(line.strip())
        else:
            records.append((line + b"\n", record))
    if lost:
        lines = "1 line is no record" if lost == 1 else f"{lost} lines are no records"
        warnings.warn(f"{path}: {lines} (cut off by a crash, or damaged), and left out", stacklevel=3)
    return records


def _is_record(record: dict[str, Any], counted: Sequence[str]) -> bool:
    numbers = all(type(record.get(key)) is int for key in counted)
    return numbers and isinstance(record.get("loss"), (int, float, type(None)))


def run_folder_of(checkpoint: Path) -> Path:
    """Find the folder of the run that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == STEPS else checkpoint.parent


def weights_of(run_folder: Path) -> Path | None:
    """Find the weights that a run is used with: its best, else its newest; None where it has none."""
    return next((file for file in (run_folder / BEST, run_folder / LATEST) if file.is_file()), None)


def weights_of_own_config(cfg_path: str | Path, options: Sequence[str]) -> Path | None:
    """Find the weights that a configuration means because it is the one in a run's folder.

    Args:
        cfg_path: the configuration.
        options: its ``--options``; what they name goes before.

    Returns:
        a checkpoint of the run; None where the file is no run's own, or the options name other weights.
    """
    named: dict[str, str] = {}
    for option in as_assignments(options):
        key, _, value = option.partition("=")
        named[key] = value
    given = [named.get(f"model.{key}", "null") for key in ("folder", "finetuned")]
    if any(value not in ("null", "") for value in given) or named.get("model.load_finetuned", "").lower() == "true":
        return None
    path = Path(cfg_path).expanduser()
    return weights_of(path.resolve().parent) if path.name == CONFIG else None
