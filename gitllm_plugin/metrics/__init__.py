"""Metrics: pure functions from predictions and references to scores.

To add one, decorate its function with :func:`~gitllm_plugin.metrics.registry.metric` in any module of this package:
that is the only place that names it. The contract in ``tests/metrics/test_contract.py`` then asks for a row in
``docs/evaluation.md``. What scores a set as a whole, as captions are scored, is a
:class:`~gitllm_plugin.metrics.registry.Metric`.
"""

import importlib
import pkgutil

from gitllm_plugin.metrics.answers import exact_match
from gitllm_plugin.metrics.captions import CAPTION_METRICS, score_captions
from gitllm_plugin.metrics.controls import score_controls
from gitllm_plugin.metrics.option_accuracy import option_accuracy
from gitllm_plugin.metrics.registry import (
    DEFAULT,
    METRICS,
    Metric,
    MetricsOf,
    Scores,
    metric,
    metrics_by_config,
    metrics_of_kind,
    score,
    why_not,
)
from gitllm_plugin.metrics.rouge import rouge_l
from gitllm_plugin.metrics.vqa import vqa_accuracy

# A module registers its metrics when it is imported, and a new one need not be named anywhere.
for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "CAPTION_METRICS",
    "DEFAULT",
    "METRICS",
    "Metric",
    "MetricsOf",
    "Scores",
    "exact_match",
    "metric",
    "metrics_by_config",
    "metrics_of_kind",
    "option_accuracy",
    "rouge_l",
    "score",
    "score_captions",
    "score_controls",
    "vqa_accuracy",
    "why_not",
]
