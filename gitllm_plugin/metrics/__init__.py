"""Metrics: pure functions from predictions and references to one score per example.

A metric takes ``predictions`` (N texts) and ``references`` (N lists of one or more accepted texts) and gives
N floats between 0 and 1. To add one, write its function in a file of its own and name it in :data:`METRICS`.
"""

from collections.abc import Callable, Sequence

from gitllm_plugin.metrics.exact_match import exact_match
from gitllm_plugin.metrics.rouge_l import rouge_l

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]

METRICS: dict[str, Metric] = {"exact_match": exact_match, "rouge_l": rouge_l}
"""Every metric by name."""

__all__ = ["METRICS", "Metric", "exact_match", "rouge_l"]
