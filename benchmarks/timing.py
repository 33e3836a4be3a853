"""Times of several functions in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of one function in several rounds.

    Attributes:
        seconds: one a round, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most."""
        return min(self.seconds), max(self.seconds)


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Run A B C A B C ...: each once to warm up, then ``rounds`` times.

    Returns:
        Name -> times, without the first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            synchronize()
            began = time.perf_counter()
            function()
            synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: Times(tuple(times[1:])) for name, times in seconds.items()}


def ratios(slow: Times, fast: Times) -> Times:
    """How many times as long ``slow`` took, round by round."""
    return Times(tuple(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)))


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
