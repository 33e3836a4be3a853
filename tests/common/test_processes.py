"""The same work in several processes."""

import os
import signal

import pytest

from gitllm_plugin.common.processes import map_in_order
from gitllm_plugin.errors import ConfigError, DataError


def square(number: int) -> int:
    return number * number


def die(number: int) -> None:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise DataError(f"row {number} of all rows")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_tasks_are_taken_as_needed(workers):
    taken = 0

    def tasks():
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    for done, result in enumerate(map_in_order(square, tasks(), workers)):
        assert result == done * done
        assert taken <= done + 2 * workers
    assert done == 19


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_through(workers):
    with pytest.raises(DataError, match="row 0 of all rows"):
        list(map_in_order(fail, range(3), workers))


def test_a_process_that_is_killed_is_told():
    with pytest.raises(DataError, match="a worker process was killed, perhaps because memory ran out"):
        list(map_in_order(die, range(8), 2))


def test_no_process():
    with pytest.raises(ConfigError, match="number of workers is 0, expected 1 or more"):
        list(map_in_order(square, [1], 0))
