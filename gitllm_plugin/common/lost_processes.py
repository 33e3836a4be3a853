"""Processes that a run needs and that are gone: workers of its data loaders, other ranks."""

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gitllm_plugin.common import ranks
from gitllm_plugin.common.processes import advise_less_memory, describe_end
from gitllm_plugin.errors import LostProcessError

# torch has no classes for these: a loader's worker that got SIGKILL, and what gloo and NCCL say when a rank is gone.
_KILLED_WORKER = re.compile(r"DataLoader worker .*killed by signal: Killed")
_LOST_RANK = re.compile(r"Connection (?:reset|closed) by peer|remote process exited")


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
    except RuntimeError as error:
        reason = describe_lost_process(error)
        if reason is None:
            raise
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
    chain: BaseException | None = error
    while chain is not None:
        if _KILLED_WORKER.search(str(chain)):
            return f"A process that loads data {killed}"
        # Alone, a broken connection is one to the network: of a download, or of a data set that is read from there.
        if ranks.is_distributed() and _LOST_RANK.search(str(chain)):
            return (
                "Another rank of this run is gone; its own error, or its exit code in torchrun's report, says why. "
                f"Where that is -9, it {killed}"
            )
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return None
