"""An experiment's page: a table of its runs and the article's two figures, training and validation loss."""

from __future__ import annotations

import json
import statistics
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


_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95%, by degrees of freedom from 1 on: one less than the seeds."""


def write_report(plan: Plan, record: StepRecord) -> Table:
    """Write page, figures and ``results.json`` of the runs that are finished; gives the table."""
    results, curves = read_results(plan, record)
    output = plan.output_dir
    write_atomically(output / RESULTS, json.dumps(results, indent=2) + "\n")
    draw_figures(plan.title, curves, output / TRAINING_FIGURE, output / VALIDATION_FIGURE)
    table = results_table(results)
    finished = {result["name"] for result in results}
    missing = [run.name for run in plan.runs if run.name not in finished]
    seeds = len(plan.groups()) < len(plan.runs)
    page = [
        f"# {plan.title}",
        table.markdown(),
        f"Training loss: mean of the last {_LAST_STEPS} steps. Validation: the best score of `{_SPLIT}`, exact match "
        "in percent. Time: training with validation, in minutes.",
        *(["Means over the seeds, with 95% confidence intervals (Student's t)."] if seeds else []),
        *([f"Not run yet: {', '.join(missing)}."] if missing else []),
        f"![Training loss]({TRAINING_FIGURE})",
        f"![Validation loss]({VALIDATION_FIGURE})",
        *(["## Each run", results_table([{**r, "group": r["name"]} for r in results]).markdown()] if seeds else []),
        "## Commands\n\n```\n" + "\n".join(map(_command, plan.runs)) + "\n```",
    ]
    write_atomically(output / PAGE, "\n\n".join(page) + "\n")
    return table


def read_results(plan: Plan, record: StepRecord) -> tuple[list[dict[str, Any]], list[RunCurves]]:
    """Give a result for each run that is finished, and for each group the mean curves of those of its runs."""
    finished = [run for run in plan.runs if record.get(run.name, "folder")]
    curves = {run.name: read_run(record.get(run.name, "folder"), run.name) for run in finished}
    results = [
        {
            "group": run.group,
            **_result(curves[run.name], record.get(run.name, "seconds"), record.get(run.name, "folder")),
        }
        for run in finished
    ]
    groups = {name: [curves[run.name] for run in runs if run.name in curves] for name, runs in plan.groups().items()}
    return results, [mean_curves(name, members) for name, members in groups.items() if members]


def draw_figures(title: str, curves: Sequence[RunCurves], training: Path, validation: Path) -> None:
    """Draw the article's two figures into files."""
    draw_training_loss(curves, training, f"{title}: training loss")
    draw_validation_loss(curves, validation, _SPLIT, f"{title}: validation loss")


def mean_curves(name: str, runs: Sequence[RunCurves]) -> RunCurves:
    """Give the mean losses of runs that differ in their seed alone, at the steps that all of them have."""

    def mean(entries: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        by_step = [{entry["step"]: entry for entry in of_run if "loss" in entry} for of_run in entries]
        common = sorted(set.intersection(*map(set, by_step)))
        return [{**by_step[0][step], "loss": sum(run[step]["loss"] for run in by_step) / len(runs)} for step in common]

    return RunCurves(name, mean([run.steps for run in runs]), mean([run.evaluations_of(_SPLIT) for run in runs]))


def results_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Give a row for each group of runs: means and, of several, 95% confidence intervals."""
    header = ("run", "trained parameters", "steps", "training loss", "validation loss", "exact match", "minutes")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["group"], []).append(result)
    rows = [
        (
            name,
            _number(members[0]["trained_parameters"], ",d"),
            str(members[0]["steps"]),
            _interval([result["training_loss"] for result in members], ".4f"),
            _interval([result["validation_loss"] for result in members], ".4f"),
            _interval([result["exact_match"] for result in members], ".1%"),
            _interval([result["minutes"] for result in members], ".1f", with_reach=False),
        )
        for name, members in groups.items()
    ]
    return Table(header, rows, numbers=range(1, len(header)))


def confidence(values: Sequence[float]) -> tuple[float, float]:
    """Give the mean of independent values and how far its 95% confidence interval reaches to each side.

    Args:
        values: 2 to 10; Student's t, as of values that are distributed normally.
    """
    degrees = len(values) - 1
    return statistics.fmean(values), _T[degrees - 1] * statistics.stdev(values) / len(values) ** 0.5


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


def _interval(values: Sequence[float | None], form: str, with_reach: bool = True) -> str:
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return _number(there[0] if there else None, form)
    mean, reach = confidence(there)
    return _number(mean, form) + (f" ± {_number(reach, form)}" if with_reach else "")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _command(run: PlannedRun) -> str:
    options = f" --options {' '.join(run.options)}" if run.options else ""
    return f"gitllm train --cfg-path {run.cfg_path}{options}"
