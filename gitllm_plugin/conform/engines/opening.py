"""Engines by the names that the command line knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from gitllm_plugin.inference.pipeline import Pipeline

ENGINES = ("torch", "transformers", "llama.cpp")
_OF_OTHERS = ("transformers", "llama.cpp")


def check_engine(engine: str, folder: str, reference: str | None) -> str:
    """Find the folder of the model that an engine should compute, before anything is loaded.

    Args:
        engine: a name of :data:`ENGINES`, or the address of an endpoint.
        folder: of the engine; of an endpoint the model's.
        reference: the model's; None: the same folder.

    Raises:
        ConfigError: no such engine, or its folder cannot be its own reference.
    """
    if not _is_url(engine) and engine not in ENGINES:
        raise ConfigError(
            f"no engine {engine!r}; there are: {', '.join(ENGINES)}, or an address (http://127.0.0.1:8000)"
        )
    if engine in _OF_OTHERS and reference is None:
        raise ConfigError(
            f"{folder} is written for {engine}: name the model that it was made of, a folder of `gitllm export` or a "
            "run, with --reference"
        )
    return folder if reference is None else reference


def open_engine(engine: str, folder: str | Path, dtype: str, open_pipeline: Callable[..., Pipeline]) -> Any:
    """Open an engine.

    Args:
        engine, folder: as for :func:`check_engine`.
        dtype: of the weights, of torch and transformers; of what an endpoint serves; auto: as they are stored, of an
            endpoint float32.
        open_pipeline: opens a folder or a run.

    Raises:
        ConfigError: it cannot be opened.
    """
    if _is_url(engine):
        from gitllm_plugin.conform.engines.url import UrlEngine

        return UrlEngine(engine, "float32" if dtype == "auto" else dtype)
    if engine == "transformers":
        from gitllm_plugin.conform.engines.stock import StockEngine

        return StockEngine(folder, dtype)
    if engine == "llama.cpp":
        from gitllm_plugin.conform.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(folder)
    from gitllm_plugin.conform.engines.torch import TorchEngine

    return TorchEngine(open_pipeline(folder, dtype=dtype))


def _is_url(engine: str) -> bool:
    return engine.startswith(("http://", "https://"))
