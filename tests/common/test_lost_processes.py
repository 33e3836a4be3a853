"""Errors of torch that mean that a process is gone, and errors that do not."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import Dataset

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import Loader, end_workers
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


class KilledReader(Dataset):
    """Whoever reads it is killed after a while."""

    def __init__(self) -> None:
        self.reading = multiprocessing.get_context("fork").Event()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        self.reading.set()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def reading() -> Iterator[Any]:
    """A loader's iterator, whose worker is about to be killed."""
    data = KilledReader()
    iterator = iter(Loader(data, num_workers=1, multiprocessing_context="fork"))
    assert data.reading.wait(60)
    yield iterator
    end_workers([iterator])


@pytest.mark.parametrize("broken", [ConnectionResetError(RESET), EOFError()])
def test_a_connection_that_breaks_before_its_worker_has_ended_is_a_lost_worker(reading, broken):
    with (
        pytest.raises(LostProcessError, match="A process that loads data was killed"),
        lost_processes_explained({"num_workers": 1}),
    ):
        raise broken


def test_workers_end_where_one_is_found_killed_just_then(reading):
    end_workers([reading])
    assert [worker.exitcode for worker in reading._workers] == [-signal.SIGKILL]


@pytest.mark.parametrize("broken", [ConnectionResetError(RESET), EOFError()])
def test_a_connection_that_breaks_alone_is_itself(broken, monkeypatch):
    monkeypatch.setattr("gitllm_plugin.common.lost_processes._SECONDS_TO_END", 0.01)
    with pytest.raises(type(broken)), lost_processes_explained({"num_workers": 1}):
        raise broken
