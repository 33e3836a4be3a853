"""Every command of the command line is listed: among those that write, or among those that write nothing."""

from tests.faults.commands import WRITES_NOTHING, WRITING, leaves


def test_every_command_is_listed_once():
    writing = {command.name for command in WRITING}
    assert sorted(leaves()) == sorted(writing | WRITES_NOTHING)
    assert not writing & WRITES_NOTHING
