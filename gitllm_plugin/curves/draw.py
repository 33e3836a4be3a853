"""Figures of loss curves, as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gitllm_plugin.curves.read import RunCurves

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
    """Means of each value and up to `width - 1` before it."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


@contextmanager
def _figure(path: Path, title: str, xlabel: str) -> Iterator[Any]:
    """Axes to draw loss curves on; the file is written when the block ends without an error."""
    import matplotlib

    matplotlib.use("Agg")  # writes files; needs no display
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, axis = plt.subplots(figsize=(8, 4.2))
    try:
        axis.set(title=title, xlabel=xlabel, ylabel="cross-entropy per answer token", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        yield axis
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)
