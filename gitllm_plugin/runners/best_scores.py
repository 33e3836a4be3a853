"""The best validation scores of a run."""

import math
from dataclasses import dataclass, field
from typing import Any

ORDERS = ("max", "min")


@dataclass
class BestScores:
    """Keeps the best scores, whatever their sign, and the steps at which they were reached.

    Attributes:
        order: `max` or `min`: which is better, the larger or the smaller.
        keep: How many are kept.
        found: Best first; each has `score`, `epoch` and `steps`.
    """

    order: str = "max"
    keep: int = 1
    found: list[dict[str, Any]] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """The best score, None before the first."""
        return self.found[0]["score"] if self.found else None

    @property
    def epoch(self) -> int | None:
        """The epoch of the best score."""
        return self.found[0]["epoch"] if self.found else None

    @property
    def steps(self) -> list[int]:
        """The optimizer steps after which the kept scores were reached, best first."""
        return [entry["steps"] for entry in self.found]

    def add(self, score: float, epoch: int, steps: int) -> bool:
        """Note a score; gives whether it is the best so far. Of equal ones the first is the best."""
        if math.isnan(score):
            return False
        others = [entry for entry in self.found if entry["steps"] != steps]
        sign = -1 if self.order == "max" else 1
        entries = [*others, {"score": score, "epoch": epoch, "steps": steps}]
        self.found = sorted(entries, key=lambda entry: sign * entry["score"])[: self.keep]
        return self.found[0]["steps"] == steps
