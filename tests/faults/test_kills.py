"""Commands that are killed (SIGKILL) anywhere and run again have written what undisturbed ones write."""

import random

import pytest

from tests.faults.commands import WRITING
from tests.faults.kill import kill_all


def test_killed_and_run_again(trials, command):
    killed, faults = trials.kill(command, random.Random(command.id), kills=2)
    assert not faults, "\n".join(faults)
    assert killed >= 0  # one that is done before its time has come was not killed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills_over_all_commands_and_no_difference(tmp_path):
    total, faults = kill_all(tmp_path, WRITING, kills=200, seed=1)
    assert total >= 200
    assert not faults, "\n".join(faults)
