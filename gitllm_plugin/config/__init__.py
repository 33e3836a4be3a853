"""Configuration: what each node may hold, declared once; :func:`read` and :func:`check` follow from it.

Cheap to import: it needs pydantic and knows neither torch nor LAVIS. What a registered class reads is its attribute
``Settings``; a class outside of this folder declares its own beside itself.
"""

from gitllm_plugin.config.node import (
    MISSING,
    Checked,
    Key,
    ReadIf,
    Rule,
    changed,
    check,
    describe,
    node,
    read,
    unknown_key,
)
from gitllm_plugin.config.values import DefaultIs, OneOf, Says, cut_long_words, did_you_mean, nearest, shown, unexpected

__all__ = [
    "MISSING",
    "Checked",
    "DefaultIs",
    "Key",
    "OneOf",
    "ReadIf",
    "Rule",
    "Says",
    "changed",
    "check",
    "cut_long_words",
    "describe",
    "did_you_mean",
    "nearest",
    "node",
    "read",
    "shown",
    "unexpected",
    "unknown_key",
]
