"""When a checkpoint is due within an epoch."""

import time
from collections.abc import Callable

from gitllm_plugin.common import ranks


class SavingTimes:
    """Asks for a checkpoint every so many optimizer steps or minutes, whichever is first.

    Only rank 0 has a clock; the training loop tells the others.

    Args:
        every_steps: None for never.
        every_minutes: None for never.
        clock: Seconds.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.clock = clock
        self.saved_at = clock()

    def by_steps(self, steps: int) -> bool:
        """Whether one is due because `steps` steps of the run are done; the same on all ranks."""
        return self.every_steps is not None and steps % self.every_steps == 0

    def by_minutes(self) -> bool:
        """Whether one is due because of the time; on rank 0 only."""
        if self.every_minutes is None or ranks.rank() != 0:
            return False
        return self.clock() - self.saved_at >= 60 * self.every_minutes

    def note_saved(self) -> None:
        """A checkpoint was written now."""
        self.saved_at = self.clock()
