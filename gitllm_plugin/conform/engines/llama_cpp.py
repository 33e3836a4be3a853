"""llama.cpp, of a folder of ``gitllm export --to llama.cpp``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gitllm_plugin.conform.asked import Asked
from gitllm_plugin.llama_cpp.engine import Engine


class LlamaCppEngine:
    """The engine that answers from such a folder: one question at a time, of which the picture stays.

    Args:
        folder: what ``gitllm export --to llama.cpp`` wrote.
        threads: of the processor; None: all.

    Raises:
        ConfigError: see :class:`~gitllm_plugin.llama_cpp.engine.Engine`.
    """

    name = "llama.cpp"

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.engine = Engine(folder, threads)
        weights = self.engine.about["weights"]
        self.precision = "float32" if weights == "f32" else weights

    def logits(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Read as for an answer."""
        return [self._read(each) for each in asked]

    def every(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Read whole texts."""
        found = []
        for each in asked:
            self.engine.forget()  # the text that was read last too
            self.engine.see(each.pixels)
            found.append(self.engine.decoder.read([*each.ids, *each.then], every=True))
        return found

    def forget(self) -> None:
        """Drop the picture that was read last."""
        self.engine.forget()

    def _read(self, asked: Asked) -> np.ndarray:
        self.engine.see(asked.pixels)
        text, read = list(asked.ids), self.engine.decoder.read_whole
        found = [read(text)]
        for token in asked.then:
            text.append(token)
            found.append(read(text))
        return np.stack(found)
