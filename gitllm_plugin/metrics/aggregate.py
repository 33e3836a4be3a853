"""From answers to the numbers of a report: each metric over all examples and over each configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.metrics import METRICS


def check_metrics(names: Sequence[str]) -> None:
    """Raises ConfigError, with the names that exist, if a name is not in METRICS."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        known = ", ".join(map(repr, sorted(METRICS)))
        raise ConfigError(f"unknown metrics {', '.join(map(repr, unknown))}; the metrics are {known}")


def aggregate(
    results: Sequence[Mapping[str, Any]], metrics: Sequence[str] = tuple(METRICS)
) -> dict[str, float]:
    """Averages metrics over examples.

    Args:
        results: one mapping per example with ``prediction`` (text), ``references`` (accepted texts) and
            ``config`` (configuration name); other keys are ignored.
        metrics: names of :data:`~gitllm_plugin.metrics.METRICS`.

    Returns:
        ``{metric}``, the mean over all examples, and ``{config}/{metric}``, the mean over one
        configuration's, configurations in alphabetical order.

    Raises:
        ConfigError: if a metric is unknown.
        ValueError: if there are no results.
    """
    check_metrics(metrics)
    if not results:
        raise ValueError("there are no results to aggregate; the evaluated split gave no prediction")
    predictions = [result["prediction"] for result in results]
    references = [result["references"] for result in results]
    scores = {name: METRICS[name](predictions, references) for name in metrics}
    report = {name: _mean(values) for name, values in scores.items()}
    for config in sorted({result["config"] for result in results}):
        rows = [row for row, result in enumerate(results) if result["config"] == config]
        for name, values in scores.items():
            report[f"{config}/{name}"] = _mean([values[row] for row in rows])
    return report


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
