"""Ctrl-C during training: the step in progress is finished first, so that what is saved is whole."""

import logging
import signal
import threading
from types import FrameType


class StopRequest:
    """Remembers the first Ctrl-C instead of raising it at once; the second one raises. A context manager.

    Outside the main thread, where Python allows no handlers, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous = None

    def __enter__(self) -> "StopRequest":
        """Take over SIGINT."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give SIGINT back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logging.warning("Interrupted: finishing this step and saving. Press Ctrl-C again to stop at once.")
