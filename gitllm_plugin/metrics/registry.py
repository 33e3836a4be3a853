"""Where a metric is declared: its name, what it means, what it needs, and which kinds of questions it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps

from gitllm_plugin.metrics.texts import clean

PerExample = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]
"""From N predictions and N lists of one or more accepted texts to N floats between 0 and 1."""


@dataclass
class Scores:
    """Scores of a set of N examples.

    Attributes:
        over_all: metric -> score of the set.
        by_example: metric -> N scores.
        skipped: metric -> why it could not be computed.
        notes: metric -> what a reader of its score must know.
        tokenizer: what split captions into words; empty where nothing did.
    """

    over_all: dict[str, float] = field(default_factory=dict)
    by_example: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""


PerSet = Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[str]], Scores]
"""From predictions, references and the names of some metrics that are computed together to their scores."""


@dataclass(frozen=True)
class Metric:
    """A metric, of which higher is better.

    Attributes:
        name: as ``run.metrics`` has it.
        meaning: what it is, in a line of ``docs/evaluation.md``.
        compute: metrics with the same function are computed by one call.
        leads: kinds of configurations, in the words of M3IT's catalog, whose first and most telling metric it is.
        kinds: further kinds that it is computed for, where ``run.metrics`` is ``m3it``.
        why_not: gives why it cannot be computed on this machine and what to do about it, None where it can.
    """

    name: str
    meaning: str
    compute: PerSet
    leads: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    why_not: Callable[[], str | None] = lambda: None


METRICS: dict[str, Metric] = {}
"""Every metric by name."""


def register(metric: Metric) -> None:
    """Make a metric known.

    Raises:
        ValueError: when its name, or the lead of one of its kinds, is another metric's.
    """
    taken = [kind for other in METRICS.values() for kind in other.leads if kind in metric.leads]
    if metric.name in METRICS or taken:
        raise ValueError(f"the metric {metric.name}, or what leads {taken}, is declared twice")
    METRICS[metric.name] = metric


def metric(
    name: str, meaning: str, *, leads: tuple[str, ...] = (), kinds: tuple[str, ...] = ()
) -> Callable[[PerExample], PerExample]:
    """Register a function that scores each example by itself; a set scores their mean. See :class:`Metric`.

    Whoever calls it, the function is given cleaned texts, see :func:`~gitllm_plugin.metrics.texts.clean`.
    """

    def decorate(given: PerExample) -> PerExample:
        @wraps(given)
        def function(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
            return given([clean(text) for text in predictions], clean_all(references))

        def compute(predictions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]) -> Scores:
            each = function(predictions, references)
            return Scores(over_all={name: sum(each) / len(each)}, by_example={name: each}) if each else Scores()

        register(Metric(name, meaning, compute, leads, kinds))
        return function

    return decorate


def clean_all(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Clean the texts of N lists, see :func:`~gitllm_plugin.metrics.texts.clean`."""
    return [[clean(text) for text in accepted] for accepted in references]


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Score a set of at least one prediction.

    Args:
        names: metrics, of :data:`METRICS`.
        predictions: N texts.
        references: N lists of accepted texts.

    Returns:
        The scores of all metrics that can be computed on this machine and of this set, and why the others cannot.

    Raises:
        KeyError: when a name is not that of a metric.
        ValueError: when the lengths differ or an example has no references.
    """
    scores = Scores(skipped={name: reason for name in names if (reason := why_not(name))})
    together: dict[PerSet, list[str]] = {}
    for name in names:
        if name not in scores.skipped:
            together.setdefault(METRICS[name].compute, []).append(name)
    for compute, computed in together.items():
        found = compute(predictions, references, computed)
        scores.over_all |= found.over_all
        scores.by_example |= found.by_example
        scores.skipped |= found.skipped
        scores.notes |= found.notes
        scores.tokenizer = scores.tokenizer or found.tokenizer
    return scores


def why_not(name: str) -> str | None:
    """Say why a metric cannot be computed on this machine, and what to do about it; None where it can.

    Args:
        name: anything; what is no metric, as ``loss``, lacks nothing.
    """
    return METRICS[name].why_not() if name in METRICS else None


MetricsOf = Callable[[str], Sequence[str]]
"""From a configuration's name to the names of its metrics, the most telling one first."""

DEFAULT = ("exact_match", "rouge_l")
"""The metrics of a configuration that nothing else is said about."""


def metrics_of_kind(kind: str) -> tuple[str, ...]:
    """Name the metrics of a kind of configuration, its leading one first and the most general last.

    Args:
        kind: of score that a configuration's field reports, the word of M3IT's catalog for it.

    Raises:
        ValueError: when no metric leads the kind.
    """
    leading = [name for name, known in METRICS.items() if kind in known.leads]
    if not leading:
        raise ValueError(f"no metric leads the kind {kind!r} of configurations")
    others = [known for known in METRICS.values() if kind in known.kinds]
    # A metric of many kinds says the least about each; and so no order of imports decides the columns of a table.
    others.sort(key=lambda known: len(known.leads) + len(known.kinds))
    return (*leading, *(known.name for known in others))


def metrics_by_config(given: Sequence[str] | Mapping[str, Sequence[str]] | MetricsOf) -> MetricsOf:
    """Give the metrics of each configuration, from any form in which they may be given.

    Args:
        given: names for all configurations; names by configuration, with ``default`` for the others; or a function.
    """
    if callable(given):
        return given
    if isinstance(given, Mapping):
        by_config = {name: tuple(metrics) for name, metrics in given.items()}
        return lambda config: by_config.get(config, by_config.get("default", DEFAULT))
    names = tuple(given)
    return lambda config: names
