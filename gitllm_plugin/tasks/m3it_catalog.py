"""What M3IT's catalog says of a configuration's evaluation, in the words of the task."""

from collections.abc import Sequence

from gitllm_plugin.m3it.catalog import CATALOG
from gitllm_plugin.metrics import DEFAULT, METRICS_OF_KIND

_ENTRIES = {entry.name: entry for entry in CATALOG}


def catalog_metrics(config: str) -> Sequence[str]:
    """Names of a configuration's metrics, the one that its field reports first; the default where it is not known."""
    return METRICS_OF_KIND[_ENTRIES[config].metric] if config in _ENTRIES else DEFAULT


def catalog_category(config: str) -> str | None:
    """The category in which a configuration is counted: ``chinese`` and ``video`` stand apart; None: not known."""
    entry = _ENTRIES.get(config)
    if entry is None:
        return None
    if entry.language == "zh":
        return "chinese"
    return "video" if entry.modality == "video" else entry.category
