"""Figures of loss curves, as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gitllm_plugin.common.files import atomic_path
from gitllm_plugin.curves.read import RunCurves, read_run

_SMOOTHED_STEPS = 20


def draw_training_loss(runs: Sequence[RunCurves], path: Path, title: str = "training loss") -> None:
    """Draw each run's loss over its optimizer steps, smoothed; of a single run also as it was."""
    with _figure(path, title, "optimizer step") as axis:
        for run in runs:
            steps = [entry["step"] + 1 for entry in run.steps]
            losses = [entry["loss"] for entry in run.steps]
            if len(runs) == 1:
                axis.plot(steps, losses, linewidth=0.8, alpha=0.4, label="each step")
            label = f"mean of {_SMOOTHED_STEPS}" if len(runs) == 1 else run.name
            axis.plot(steps, smooth(losses, _SMOOTHED_STEPS), linewidth=1.6, label=label)


def draw_validation_loss(
    runs: Sequence[RunCurves], path: Path, split: str = "val", title: str = "validation loss"
) -> None:
    """Draw each run's loss on a split over the steps at which it was evaluated."""
    with _figure(path, title, "optimizer step") as axis:
        for run in runs:
            evaluations = [entry for entry in run.evaluations_of(split) if "loss" in entry]
            axis.plot(
                [entry["step"] for entry in evaluations],
                [entry["loss"] for entry in evaluations],
                marker="o",
                markersize=4,
                linewidth=1.6,
                label=run.name,
            )


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Means of each value and up to ``width - 1`` before it."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def draw_run(folder: Path) -> list[Path]:
    """Draw a run's losses into its own folder: ``train_loss.png``, and ``<split>_loss.png`` for each validation split.

    Raises:
        ConfigError: it is not a run's folder.
    """
    return draw_runs([read_run(folder)], folder)


def draw_runs(runs: Sequence[RunCurves], folder: Path) -> list[Path]:
    """Draw runs beside each other, as ``draw_run`` does a single one; gives the figures' paths.

    A split that was evaluated once only, as in a final test, has no curve.
    """
    paths = [folder / "train_loss.png"]
    draw_training_loss(runs, paths[0])
    splits = {entry["split"] for run in runs for entry in run.evaluations if "loss" in entry}
    for split in sorted(splits):
        if all(len(run.evaluations_of(split)) < 2 for run in runs):
            continue
        paths.append(folder / f"{split}_loss.png")
        draw_validation_loss(runs, paths[-1], split, f"loss on {split}")
    return paths


@contextmanager
def _figure(path: Path, title: str, xlabel: str) -> Iterator[Any]:
    """Axes to draw loss curves on; the file is written when the block ends without an error."""
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and may look for a display
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(8, 4.2), layout="tight")
    axis = figure.subplots()
    axis.set(title=title, xlabel=xlabel, ylabel="cross-entropy per answer token", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    yield axis
    if axis.get_legend_handles_labels()[0]:  # else there is nothing drawn, as where every run of an experiment failed
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
