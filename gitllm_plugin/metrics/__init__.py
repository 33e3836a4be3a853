"""Metrics: pure functions from predictions and references to scores.

A metric of examples takes ``predictions`` (N texts) and ``references`` (N lists of one or more accepted texts) and
gives N floats between 0 and 1; a set scores their mean. To add one, write its function in a file of its own and name
it in :data:`METRICS`. Metrics of captions (:mod:`~gitllm_plugin.metrics.captions`) score a set as a whole.
"""

from collections.abc import Callable, Sequence

from gitllm_plugin.metrics.by_config import DEFAULT, METRICS_OF_KIND, MetricsOf, metrics_by_config
from gitllm_plugin.metrics.captions import CAPTION_METRICS, score_captions, why_not
from gitllm_plugin.metrics.exact_match import exact_match
from gitllm_plugin.metrics.option_accuracy import option_accuracy
from gitllm_plugin.metrics.rouge_l import rouge_l
from gitllm_plugin.metrics.scores import Scores
from gitllm_plugin.metrics.vqa import vqa_accuracy

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]

METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "option_accuracy": option_accuracy,
    "vqa_accuracy": vqa_accuracy,
}
"""Every metric of examples by name."""

METRIC_NAMES = (*METRICS, *CAPTION_METRICS)
"""What :func:`score` knows."""


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Scores a set of at least one prediction.

    Args:
        names: metrics, of :data:`METRIC_NAMES`.
        predictions: N texts.
        references: N lists of accepted texts.

    Raises:
        ValueError: if the lengths differ or an example has no references.
    """
    of_captions = [name for name in names if name in CAPTION_METRICS and not why_not(name)]
    scores = score_captions(predictions, references, of_captions) if of_captions else Scores()
    scores.skipped |= {name: reason for name in names if (reason := why_not(name))}
    for name in names:
        if name in METRICS:
            each = METRICS[name](predictions, references)
            scores.by_example[name] = each
            scores.over_all[name] = sum(each) / len(each)
    return scores


__all__ = [
    "CAPTION_METRICS",
    "DEFAULT",
    "METRICS",
    "METRICS_OF_KIND",
    "METRIC_NAMES",
    "Metric",
    "MetricsOf",
    "Scores",
    "exact_match",
    "metrics_by_config",
    "option_accuracy",
    "rouge_l",
    "score",
    "score_captions",
    "vqa_accuracy",
    "why_not",
]
