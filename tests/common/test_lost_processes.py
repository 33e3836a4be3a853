"""Errors of torch that mean that a process is gone, and errors that do not."""

import pytest

from gitllm_plugin.common import ranks
from gitllm_plugin.common.lost_processes import describe_lost_process, lost_processes_explained
from gitllm_plugin.errors import LostProcessError

RESET = "Connection reset by peer"


def test_other_errors_are_no_lost_process():
    assert describe_lost_process(RuntimeError("shapes do not match")) is None


def test_a_broken_connection_is_a_lost_rank_only_where_there_are_ranks(monkeypatch):
    assert describe_lost_process(RuntimeError(RESET)) is None
    monkeypatch.setattr(ranks, "is_distributed", lambda: True)
    assert (describe_lost_process(RuntimeError(RESET)) or "").startswith("Another rank of this run is gone")


@pytest.mark.parametrize(("hidden", "told"), [(False, True), (True, False)])
def test_what_an_error_was_raised_from_counts_unless_it_was_hidden(monkeypatch, hidden, told):
    monkeypatch.setattr(ranks, "is_distributed", lambda: True)
    error = RuntimeError("another matter")
    error.__context__ = ConnectionError(RESET)
    error.__suppress_context__ = hidden
    assert (describe_lost_process(error) is not None) == told


def test_a_lost_process_is_explained_once():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with (
        pytest.raises(LostProcessError) as raised,
        lost_processes_explained({"num_workers": 4}, ["batch_size_eval"]),
        lost_processes_explained({"num_workers": 4}, ["batch_size_train"]),
    ):
        raise killed
    assert "run.batch_size_train" in str(raised.value) and "batch_size_eval" not in str(raised.value)
    assert raised.value.__cause__ is killed
