"""What M3IT's catalog says of a configuration's evaluation, in the words of the task."""

from collections.abc import Sequence

from gitllm_plugin.m3it.catalog import BY_NAME
from gitllm_plugin.metrics import DEFAULT, METRICS_OF_KIND


def catalog_metrics(config: str) -> Sequence[str]:
    """Names of a configuration's metrics, the one that its field reports first; the default where it is not known."""
    return METRICS_OF_KIND[BY_NAME[config].kind] if config in BY_NAME else DEFAULT


def catalog_category(config: str) -> str | None:
    """The category in which a configuration is counted: ``chinese`` and ``video`` stand apart; None: not known."""
    entry = BY_NAME.get(config)
    if entry is None:
        return None
    if entry.language == "zh":
        return "chinese"
    return "video" if entry.modality == "video" else entry.category
