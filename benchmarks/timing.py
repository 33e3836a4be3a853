"""Times of several functions in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """What one function took in several rounds.

    Attributes:
        wall: seconds by the clock, one a round, in order.
        processor: seconds that this process computed; with one thread, what ``wall`` would be on an idle machine.
    """

    wall: tuple[float, ...]
    processor: tuple[float, ...]


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, Times]:
    """Run A B C A B C ...: each once to warm up where that has not been done, then ``rounds`` times.

    Returns:
        Name -> times, without the warming up.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds + warm_up):
        for name, function in functions.items():
            synchronize()
            began = time.perf_counter(), time.process_time()
            function()
            synchronize()
            taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {name: Times(*zip(*times[warm_up:], strict=True)) for name, times in taken.items()}


@dataclass(frozen=True)
class Ratio:
    """How many times as long one function took as another, round by round: median, least and most."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Of times of the same rounds."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
