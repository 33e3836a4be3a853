"""Ctrl-C and a scheduler's signals: the step in progress is finished first, so that what is saved is whole."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a machine away: SLURM's time limit, Kubernetes, ``kill``."""


class Preempted(BaseException):
    """The run was asked to make room. Like :class:`KeyboardInterrupt`, no error, and not caught as one."""


class StopRequest:
    """Remembers the first Ctrl-C or preemption instead of ending at once. A context manager.

    A second Ctrl-C raises. Outside the main thread, where Python allows no handlers, nothing is changed.

    Attributes:
        number: the signal that came, None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, object] = {}
        self._at_once = False

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def __enter__(self) -> "StopRequest":
        """Take over the signals."""
        # Also where a shell has them ignored, as for commands in the background: a run has something to save.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *PREEMPTION):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal inside the block end the run at once, because nothing in it would be lost.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after another signal.
        """
        self._at_once = True
        try:
            # One that came before the block has not ended anything yet.
            if self.number is not None:
                self._raise(self.number)
            yield
        finally:
            self._at_once = False

    def stop(self) -> None:
        """End the run as the signal that came asks for; on a rank that got none, as for a preemption.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after another signal.
        """
        # Another rank got the signal: only that one knows which.
        self._raise(self.number or signal.SIGTERM)

    @staticmethod
    def _raise(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(signal.Signals(number).name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Whoever presses Ctrl-C twice wants out; schedulers send their signal more than once as a matter of course.
        again = number == signal.SIGINT and self.number == signal.SIGINT
        self.number = number
        if self._at_once or again:
            self._raise(number)
        if number == signal.SIGINT:
            logging.warning("Interrupted: finishing this step and saving. Press Ctrl-C again to stop at once.")
        else:
            logging.warning("%s: finishing this step and saving.", signal.Signals(number).name)
