"""What configurations are scored by: ROUGE-L throughout, as in M3IT's paper, and what suits each kind besides."""

from collections.abc import Callable, Mapping, Sequence

MetricsOf = Callable[[str], Sequence[str]]
"""From a configuration's name to the names of its metrics, the most telling one first."""

DEFAULT = ("exact_match", "rouge_l")

_CAPTIONS = ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l")
_OPTIONS = ("option_accuracy", "rouge_l")
_ANSWERS = ("vqa_accuracy", "exact_match", "rouge_l")
_TEXTS = ("rouge_l",)

METRICS_OF_KIND: dict[str, tuple[str, ...]] = {
    "cider": _CAPTIONS,
    "choice": _OPTIONS,
    "vqa": _ANSWERS,
    "exact_match": DEFAULT,
    "rouge_l": _TEXTS,
}
"""By the kind of score that a configuration's field reports, the word of M3IT's catalog for it."""


def metrics_by_config(given: Sequence[str] | Mapping[str, Sequence[str]] | MetricsOf) -> MetricsOf:
    """The metrics of each configuration, from any form in which they may be given.

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
