"""An experiment's page: a table of its runs and the article's two figures, training and validation loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.common.file_faults import read_json
from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.curves.draw import draw_training_loss, draw_validation_loss
from gitllm_plugin.curves.read import RunCurves, read_run
from gitllm_plugin.experiments.plan import Plan, PlannedRun
from gitllm_plugin.experiments.record import StepRecord
from gitllm_plugin.tables import Table

PAGE, RESULTS = "README.md", "results.json"
TRAINING_FIGURE, VALIDATION_FIGURE = "training_loss.png", "validation_loss.png"
_SPLIT = "val"
_LAST_STEPS = 20


def write_report(plan: Plan, record: StepRecord) -> Table:
    """Write page, figures and ``results.json`` of the runs that are finished; gives the table."""
    finished = [run for run in plan.runs if record.get(run.name, "folder")]
    runs = [read_run(record.get(run.name, "folder"), run.name) for run in finished]
    results = [_result(run, record.get(run.name, "seconds"), record.get(run.name, "folder")) for run in runs]
    output = plan.output_dir
    write_atomically(output / RESULTS, json.dumps(results, indent=2) + "\n")
    draw_training_loss(runs, output / TRAINING_FIGURE, f"{plan.title}: training loss")
    draw_validation_loss(runs, output / VALIDATION_FIGURE, _SPLIT, f"{plan.title}: validation loss")
    table = results_table(results)
    missing = [run.name for run in plan.runs if run not in finished]
    page = [
        f"# {plan.title}",
        table.markdown(),
        f"Training loss: mean of the last {_LAST_STEPS} steps. Validation: the best score of `{_SPLIT}`, exact match "
        "in percent. Time: training with validation, in minutes.",
        *([f"Not run yet: {', '.join(missing)}."] if missing else []),
        f"![Training loss]({TRAINING_FIGURE})",
        f"![Validation loss]({VALIDATION_FIGURE})",
        "## Commands\n\n```\n" + "\n".join(map(_command, plan.runs)) + "\n```",
    ]
    write_atomically(output / PAGE, "\n\n".join(page) + "\n")
    return table


def results_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Give a row for each run."""
    header = ("run", "trained parameters", "steps", "training loss", "validation loss", "exact match", "minutes")
    rows = [
        (
            result["name"],
            _number(result["trained_parameters"], ",d"),
            str(result["steps"]),
            _number(result["training_loss"], ".4f"),
            _number(result["validation_loss"], ".4f"),
            _number(result["exact_match"], ".1%"),
            _number(result["minutes"], ".1f"),
        )
        for result in results
    ]
    return Table(header, rows, numbers=range(1, len(header)))


def _result(run: RunCurves, seconds: float | None, folder: str) -> dict[str, Any]:
    last = [entry["loss"] for entry in run.steps[-_LAST_STEPS:]]
    evaluations = run.evaluations_of(_SPLIT)
    return {
        "name": run.name,
        "folder": folder,
        "trained_parameters": _trained_parameters(Path(folder)),
        "steps": len(run.steps),
        "training_loss": sum(last) / len(last) if last else None,
        "validation_loss": min((e["loss"] for e in evaluations if "loss" in e), default=None),
        "exact_match": max((e["exact_match"] for e in evaluations if "exact_match" in e), default=None),
        "minutes": seconds / 60 if seconds else None,
    }


def _trained_parameters(folder: Path) -> int | None:
    path = folder / "versions.json"
    return read_json(path).get("trained_parameters") if path.is_file() else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _command(run: PlannedRun) -> str:
    options = f" --options {' '.join(run.options)}" if run.options else ""
    return f"gitllm train --cfg-path {run.cfg_path}{options}"
