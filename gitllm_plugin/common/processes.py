"""The same work on many things, in several processes, with results in order and bounded memory."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from gitllm_plugin.errors import ConfigError, DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yields the function's result for each task, in the order of tasks.

    Args:
        function: of a module, not a local one; it and tasks and results are pickled.
        tasks: taken as they are needed: two a process are under way at a time.
        workers: number of processes; 1 works in this one.

    Raises:
        ConfigError: if the number of workers is below 1.
        DataError: if a process was killed, as the system does when memory runs out.
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
        raise DataError(
            "a worker process was killed, perhaps because memory ran out. Run the same command again with fewer "
            "--workers; what is finished is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
