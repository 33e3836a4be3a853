"""Commands of ``gitllm`` and what they read, made once for all files here."""

import pytest

from tests.faults.commands import WRITING
from tests.faults.trials import Trials


@pytest.fixture(scope="session")
def trials(tmp_path_factory):
    """Runs commands that write."""
    return Trials(tmp_path_factory.mktemp("faults"))


def pytest_generate_tests(metafunc):
    """Give a test that asks for a ``command`` each of them, those that take long to the slow tests."""
    if "command" in metafunc.fixturenames:
        each = [
            pytest.param(command, id=command.id, marks=[pytest.mark.slow] if command.is_slow else [])
            for command in WRITING
        ]
        metafunc.parametrize("command", each)
