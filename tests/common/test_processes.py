"""The same work in several processes, and how processes ended."""

import os
import signal

import pytest

from gitllm_plugin.common.processes import (
    advise_less_memory,
    describe_end,
    map_in_order,
    run_module,
    was_killed,
)
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


@pytest.mark.parametrize(
    ("last_act", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed, perhaps because memory ran out"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "was ended by the signal SIGTERM"),
        (
            "sys.exit(os.system('kill -9 $$') and 137)",
            "was killed, perhaps because memory ran out",
        ),  # by way of a shell
        ("sys.exit(3)", "ended with exit status 3"),
        ("sys.exit(250)", "ended with exit status 250"),
    ],
)
def test_how_a_process_ended_in_words(last_act, said, tmp_path):
    (tmp_path / "acts.py").write_text(f"import os, signal, sys\n{last_act}\n")
    status = run_module(["acts"], {"PYTHONPATH": str(tmp_path)})
    assert describe_end(status) == said
    assert was_killed(status) == ("killed" in said)


def test_less_memory_is_half_of_what_is_known():
    keys = ("batch_size_train", "batch_size_eval")
    run = {"batch_size_train": 5, "batch_size_eval": 64}
    expected = "Lower run.batch_size_train from 5 to 2 and run.batch_size_eval from 64 to 32"
    assert advise_less_memory(run, keys) == expected
    assert advise_less_memory({"batch_size_train": 1}, keys) == "Lower run.batch_size_eval"
    assert "troubleshooting" in advise_less_memory(dict.fromkeys(keys, 1), keys)
