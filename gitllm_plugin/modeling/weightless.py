"""Models by their configuration alone, without memory for their weights: to see what they would take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from gitllm_plugin.common.simulated_memory import WithoutNumbers

_LEFT_OUT: ContextVar[bool] = ContextVar("weights are left out", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, what would be loaded is made by its configuration, and its weights are on the meta device."""
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def weights_left_out() -> bool:
    """Tell whether this is inside :func:`without_weights`."""
    return _LEFT_OUT.get()


def make_by_config(model_class: Any, config: Any, dtype: torch.dtype | None = None) -> Any:
    """Make a model of transformers without weights.

    Args:
        model_class: of transformers, an Auto class too.
        config: its configuration.
        dtype: of its weights; None: the configuration's.
    """
    make = getattr(model_class, "from_config", None) or model_class._from_config
    with WithoutNumbers():
        return make(config, dtype=dtype).eval()
