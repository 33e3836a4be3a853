"""Processes that a run needs and that are gone: workers of its data loaders, other ranks."""

import re
import resource
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gitllm_plugin.common import ranks
from gitllm_plugin.common.processes import advise_less_memory, describe_end
from gitllm_plugin.errors import LostProcessError

# torch has no classes for these: a loader's worker that is gone, no more descriptors for what workers hand over, and
# what gloo and NCCL say when a rank is gone.
_KILLED_WORKER = re.compile(r"DataLoader worker .*killed by signal: Killed")
_CRASHED_WORKER = re.compile(r"DataLoader worker .*killed by signal: (?P<signal>[^.]+)")
_ENDED_WORKER = re.compile(r"DataLoader worker .*exited unexpectedly")
_NO_MORE_FILES = re.compile(r"[Tt]oo many open files")
_OTHER_END = "A process that loads data crashed or ended early: it"
_ALONE = (
    "A library that decodes pictures or reads a table may have crashed: with run.num_workers=0 the run reads the data "
    "itself, and what is wrong is told where it happens"
)
_LOST_RANK = re.compile(r"Connection (?:reset|closed) by peer|remote process exited")
_SECONDS_TO_END = 1.0


@contextmanager
def lost_processes_explained(run_cfg: Mapping[str, Any], batch_sizes: Sequence[str] = ()) -> Iterator[None]:
    """Turn torch's errors about a worker or rank that is gone into one that says what to change.

    Args:
        run_cfg: the configuration's section ``run``.
        batch_sizes: its keys that decide how much memory a batch takes.

    Raises:
        LostProcessError: in the place of such an error; all others pass.
    """
    try:
        yield
    except LostProcessError:
        raise  # explained already, further in
    except Exception as first:
        error = _noticed(first) if run_cfg.get("num_workers") else first
        # Also where it looks like another fault: a checkpoint that cannot be opened, say.
        if _is_out_of_files(error):
            raise LostProcessError(_more_files(run_cfg)) from error
        reason = describe_lost_process(error) if isinstance(error, (RuntimeError, OSError)) else None
        if reason is None:
            raise
        if reason.startswith(_OTHER_END):
            raise LostProcessError(f"{reason}. {_ALONE}") from error
        # Every worker holds some batches, and none means that this process loads them itself.
        keys = [*batch_sizes, *(["num_workers"] if run_cfg.get("num_workers") else [])]
        raise LostProcessError(f"{reason}. {advise_less_memory(run_cfg, keys)}") from error


def describe_lost_process(error: BaseException) -> str | None:
    """Say which process that a run needs is gone, where that is what ``error``, or what led to it, tells.

    Args:
        error: as torch raises it: a loader's worker was killed, or the connection to another rank broke.

    Returns:
        One or two sentences without the last period; None for every other error.
    """
    killed = describe_end(-signal.SIGKILL)
    ended = None
    for chain in _chain(error):
        if _KILLED_WORKER.search(str(chain)):
            return f"A process that loads data {killed}"
        if crashed := _CRASHED_WORKER.search(str(chain)):
            return f"{_OTHER_END} was ended by the signal {crashed['signal']}"
        if _ENDED_WORKER.search(str(chain)):
            ended = f"{_OTHER_END} ended by itself"  # or of a signal, which what led to it says
        # Alone, a broken connection is one to the network: of a download, or of a data set that is read from there.
        if ranks.is_distributed() and _LOST_RANK.search(str(chain)):
            return (
                "Another rank of this run is gone; its own error, or its exit code in torchrun's report, says why. "
                f"Where that is -9, it {killed}"
            )
    return ended


def _noticed(error: Exception) -> Exception:
    """Give what torch says of a worker that is just ending, or the error itself, after a second at most.

    A worker's connections break before it counts as ended.
    """
    if isinstance(error, (ConnectionError, EOFError)):
        try:
            time.sleep(_SECONDS_TO_END)  # cut short by the signal of its end, for which torch raises its error
        except RuntimeError as noticed:
            return noticed
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_out_of_files(error: BaseException) -> bool:
    return any(_NO_MORE_FILES.search(str(each)) for each in _chain(error))


def _more_files(run_cfg: Mapping[str, Any]) -> str:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"This process may open {allowed} files, and a run needs more: for its data, and for what the "
        f"{run_cfg.get('num_workers') or 0} processes of run.num_workers hand over. Raise it, `ulimit -n 4096` in the "
        "shell that starts the run, or lower run.num_workers"
    )
