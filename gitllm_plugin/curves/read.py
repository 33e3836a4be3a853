"""What a run's folder says about how it went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitllm_plugin.common.run_files import linked_run, read_records
from gitllm_plugin.errors import ConfigError

STEPS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class RunCurves:
    """A run's course.

    Attributes:
        name: in legends and tables.
        steps: optimizer steps in their order: ``step``, ``epoch``, ``iter``, ``loss``, ``lr``, ``samples``,
            ``seconds``, ...; without those that had no finite loss and were skipped.
        evaluations: of splits during and after training, in their order: ``split``, ``step``, ``epoch``, ``loss``
            where it was computed, and each metric.
    """

    name: str
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    def evaluations_of(self, split: str) -> list[dict[str, Any]]:
        """Give a split's evaluations during training, one a step."""
        by_step = {entry["step"]: entry for entry in self.evaluations if entry["split"] == split}
        return [by_step[step] for step in sorted(by_step)]


def read_run(folder: str | Path, name: str | None = None) -> RunCurves:
    """Read a run's folder.

    Args:
        folder: the run's folder, or the folder above with its link ``latest``.
        name: None: the folder's own name.

    Raises:
        ConfigError: it is not a run's folder.
    """
    folder = Path(folder).expanduser()
    if not (folder / STEPS).is_file() and (latest := linked_run(folder)) is not None:
        name, folder = name or folder.name, latest
    if not (folder / STEPS).is_file():
        raise ConfigError(f"{folder} is not the folder of a training run: it has no {STEPS}")
    steps = [entry for _, entry in read_records(folder / STEPS) if entry.get("loss") is not None]
    evaluations = [entry for _, entry in read_records(folder / EVALUATIONS) if isinstance(entry.get("split"), str)]
    return RunCurves(name or folder.resolve().name, steps, evaluations)
