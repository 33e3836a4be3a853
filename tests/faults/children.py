"""Commands of ``gitllm`` in processes of their own that start at once, since what they import is there already.

A child can be killed after a time, or when it is about to do something to the file system: before the n-th time that it
opens a file for writing, renames, links, makes or deletes one.
"""

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.server import forking

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Of the process that looks after semaphores: killed children leave theirs.
os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")

_EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod")
SECONDS = 240.0
"""In which every command here has to end: far more than any takes."""


@dataclass(frozen=True)
class Orders:
    """What happens to a child besides its command.

    Attributes:
        home: its home folder, below which what it does to files is counted.
        kill_before: the number of that event before which it is killed, from 1; None: never.
        largest_file: bytes that a file may have, from the event ``limit_from`` on; None: any.
        limit_from: not before the first: the limit is also one of the memory that torch shares between processes.
        before: is called in its process before the command.
    """

    home: Path
    kill_before: int | None = None
    largest_file: int | None = None
    limit_from: int = 1
    before: Callable[[], object] | None = None


class Child:
    """A command that runs.

    Args:
        argv: of ``gitllm``.
        orders: what else.
    """

    def __init__(self, argv: Sequence[str], orders: Orders):
        self._events = forking().RawValue("i", 0)
        self._reader, writer = forking().Pipe(duplex=False)
        self._process = forking().Process(target=_run, args=(list(argv), orders, self._events, writer))
        self._began = time.monotonic()
        self._process.start()
        writer.close()
        self._printed: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def kill_after(self, seconds: float) -> None:
        """Kill it with all its children, unless it ends before."""
        self._process.join(seconds)
        if self._process.is_alive():
            _kill_group(self._process.pid)

    def end(self) -> "Ended":
        """Wait for its end."""
        self._process.join(SECONDS)
        took = time.monotonic() - self._began
        hangs = self._process.is_alive()
        _kill_group(self._process.pid)
        self._process.join()
        _wait_for_group(self._process.pid)
        self._thread.join(10)
        printed = b"".join(self._printed).decode(errors="replace")
        assert not hangs, f"not ended after {SECONDS} s:\n{printed}"
        return Ended(self._process.exitcode or 0, printed, self._events.value, took)

    def _read(self) -> None:
        while data := os.read(self._reader.fileno(), 1 << 16):
            self._printed.append(data)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status, below 0 the signal that ended it.
        printed: on both streams.
        events: how often it did something to files.
        seconds: how long it took.
    """

    status: int
    printed: str
    events: int
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether it was ended by SIGKILL."""
        return self.status == -signal.SIGKILL


def _kill_group(process: int | None) -> None:
    assert process is not None
    for kill in (os.killpg, os.kill):  # the group's leader it is from its first line on
        try:
            return kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _wait_for_group(group: int | None) -> None:
    """Wait until all of a group are gone; those that ended may be there until whoever has them now asks."""
    assert group is not None
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def _run(argv: list[str], orders: Orders, events, writer) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    os.environ["HOME"] = str(orders.home)
    os.chdir(orders.home)
    from gitllm_plugin.cli.main import main

    if orders.before is not None:
        orders.before()
    watched = str(orders.home)

    def count(event: str, args: tuple) -> None:
        writes = event in _EVENTS or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        names = [os.fspath(arg) for arg in args if isinstance(arg, (str, os.PathLike))]
        if writes and any(name.startswith(watched) for name in names):
            events.value += 1
            if events.value == orders.limit_from and orders.largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (orders.largest_file, orders.largest_file))
            if events.value == orders.kill_before:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(count)
    status = main(argv)
    sys.stdout.flush()
    sys.exit(status)
