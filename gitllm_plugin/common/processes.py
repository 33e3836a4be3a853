"""Processes: the same work in several of them, commands of their own, and how they ended, in words.

Imports nothing heavy: commands are started before torch is needed.
"""

import contextlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from gitllm_plugin.errors import ConfigError, DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

_INTERRUPTED = (130, -signal.SIGINT)
"""How a process ends after Ctrl-C: with the shells' exit status for it, or by the signal itself."""


def map_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield the function's result for each task, in the order of tasks.

    Args:
        function: of a module, not a local one; it and tasks and results are pickled.
        tasks: taken as they are needed: two a process are under way at a time.
        workers: number of processes; 1 works in this one.

    Raises:
        ConfigError: when the number of workers is below 1.
        DataError: when a process was killed, as the system does when memory runs out.
    """
    if workers < 1:
        raise ConfigError(f"the number of workers is {workers}, expected 1 or more")
    if workers == 1:
        yield from map(function, tasks)
        return
    # Not fork: a process that holds threads, as those of numpy, must not be copied.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    pending: deque = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        # The pool does not tell how its process ended; one that raises an error goes on, so it was a signal.
        raise DataError(
            f"a worker process {describe_end(-signal.SIGKILL)}. Run the same command again with fewer --workers; what "
            "is finished is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """Count the CPUs that this process may use, which on a cluster's node may be fewer than it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_running(process: int) -> bool:
    """Tell whether a process of this machine is there; also true where that cannot be known."""
    if os.name != "posix":  # Windows takes the signal 0 for Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's; or no process can have such a number
        return True
    # One that has ended is there until its parent asks how, and in containers the first process may never do so.
    with contextlib.suppress(OSError, IndexError):  # only Linux says
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def run_module(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run ``python -m`` with this interpreter, showing what it prints.

    Ctrl-C reaches the command too, which may have something to save: it is waited for, however long it takes.

    Args:
        arguments: the module and its arguments.
        environment: variables for it, beside this process's own.

    Returns:
        The exit status; below 0 it is the number of the signal that ended the command.

    Raises:
        KeyboardInterrupt: when the command ended because of Ctrl-C.
    """
    process = subprocess.Popen([sys.executable, "-m", *arguments], env={**os.environ, **(environment or {})})
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue
    if status in _INTERRUPTED:
        raise KeyboardInterrupt
    return status


def show_command(arguments: Sequence[str]) -> str:
    """Give the command of :func:`run_module` as one types it."""
    return shlex.join(["python", "-m", *arguments])


def describe_end(status: int) -> str:
    """Say how a process ended that failed, as the rest of a sentence about it.

    Args:
        status: as :mod:`subprocess` gives it, below 0 for a signal, or as a shell does, 128 and the signal's number.
    """
    number = -status if status < 0 else status - 128
    if number == signal.SIGKILL:
        # Nobody else sends it to a run as a rule, and the system that sends it when memory runs out leaves no other
        # word: the process itself has no chance to say anything.
        return "was killed, perhaps because memory ran out"
    if number in {known.value for known in signal.Signals}:
        return f"was ended by the signal {signal.Signals(number).name}"
    return f"ended with exit status {status}"


def was_killed(status: int) -> bool:
    """Say whether a process was ended by SIGKILL, see :func:`describe_end`."""
    return status in (-signal.SIGKILL, 128 + signal.SIGKILL)


def advise_less_memory(run: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Name the settings of a run to lower where its memory ran out, as a sentence.

    Args:
        run: the configuration's section ``run``; present values are halved where it has them.
        keys: its keys that decide how much memory is used.
    """
    known = {key: run.get(key) for key in keys}
    steps = [
        f"run.{key} from {value} to {value // 2}" if isinstance(value, int) else f"run.{key}"
        for key, value in known.items()
        if not isinstance(value, int) or value > 1
    ]
    if not steps:
        return f"{' and '.join(f'run.{key}' for key in keys)} cannot be lowered: see docs/troubleshooting.md"
    return f"Lower {' and '.join(steps)}"
