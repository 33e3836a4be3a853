"""What an engine has to offer to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gitllm_plugin.conform.asked import Asked
from gitllm_plugin.errors import ConfigError

TOLERANCES = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 3e-1, "q8_0": 1e-1, "q4_k_m": 5e-1}
"""By precision, what logits may differ, as a share of the largest."""


class Engine(Protocol):
    """An engine as :func:`~gitllm_plugin.conform.check` asks it: ``logits`` or ``texts`` it must have, the rest it may.

    What it lacks is left out and told. Logits tell most: of texts, faults that change no word are not seen.

    Attributes:
        name: in the report.
        precision: a name of :data:`TOLERANCES`.
        batches: optional; whether several questions can be asked in one call. False where it is not there.
    """

    name: str
    precision: str

    def logits(self, asked: Sequence[Asked]) -> Sequence[np.ndarray]:
        """Read pictures and prompts as for an answer, then the tokens ``then`` one after another.

        Args:
            asked: one question, or with ``batches`` several, of equally many tokens in ``then``.

        Returns:
            Of each float32 ``[1 + len(then), V]``: logits behind its prompt and behind each of those tokens.
        """
        ...

    def texts(self, asked: Sequence[Asked], new_tokens: int) -> Sequence[str]:
        """Answer greedily, with so many tokens at most."""
        ...

    def every(self, asked: Sequence[Asked]) -> Sequence[np.ndarray]:
        """Optional: read whole texts at once, as for training or ranking: logits behind each token, ``[T, V]``."""
        ...

    def beams(self, asked: Sequence[Asked], num_beams: int, new_tokens: int) -> Sequence[tuple[Sequence[int], float]]:
        """Optional: search with beams for an answer of so many tokens, of which none ends it.

        Returns:
            The tokens, and the logarithm of their likelihood (a sum, not divided by their number).
        """
        ...

    def forget(self) -> None:
        """Optional: drop what was kept of earlier questions."""
        ...


def offers(engine: Any, name: str) -> bool:
    """Tell whether an engine has what a check asks for."""
    return bool(getattr(engine, name, False))


def tolerance_of(engine: Any) -> float:
    """Give what logits of an engine may differ.

    Raises:
        ConfigError: it gives neither logits nor texts, or its precision is not known.
    """
    if not (offers(engine, "logits") or offers(engine, "texts")):
        raise ConfigError(f"{type(engine).__name__} has neither logits nor texts: see gitllm_plugin.conform.Engine")
    if engine.precision not in TOLERANCES:
        raise ConfigError(
            f"no tolerance is known for the precision {engine.precision!r}: give one, or name the engine's precision "
            f"as one of {', '.join(TOLERANCES)}"
        )
    return TOLERANCES[engine.precision]
