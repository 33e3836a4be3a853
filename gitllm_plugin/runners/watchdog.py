"""Ranks that wait for each other forever: each says where it is, and ends."""

import faulthandler
import os
import sys
import threading
import time

from gitllm_plugin.common import ranks

EXIT_STUCK = 75


class Watchdog:
    """Ends this process when it stays at one place for too long. A context manager; alone, a run is not watched.

    Waiting for other ranks blocks the main thread for hours before torch gives up, and then without saying which
    rank the others waited for. Here every rank prints its own place at about the same time: the odd one is the
    culprit, and the trace of its threads is printed too.

    Args:
        minutes: How long one place may take, 0 for ever.
    """

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.place = "starting"
        self.since = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        """Begin to watch."""
        if self.seconds and ranks.is_distributed():
            self._ended.clear()
            self.at("starting")
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Watch no longer."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def at(self, place: str) -> None:
        """The rank goes on, to this place."""
        self.place, self.since = place, time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self.since > self.seconds:
                self._give_up()

    def _give_up(self) -> None:
        rank, world = ranks.rank(), ranks.world_size()
        sys.stderr.write(
            f"error: rank {rank} of {world} has made no progress for {self.seconds / 60:g} minutes "
            f"(run.step_timeout_minutes) at: {self.place}. Each rank prints its own place; look for the one that is "
            "not waiting for the others. Checkpoints are whole: the run can be resumed.\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback()
        os._exit(EXIT_STUCK)
