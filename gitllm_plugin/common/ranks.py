"""What ranks tell each other. In one process every function gives back what it was given."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from gitllm_plugin.common.files import storage_errors
from gitllm_plugin.errors import GitLLMError, StorageError

_host_group: Any = None


def is_distributed() -> bool:
    """Tell whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Give this process's number in the group, 0 where there is none."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Count the processes of the group, 1 where there is none."""
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        dist.barrier()


def set_host_group(group: Any) -> None:
    """Let numbers of the host be exchanged in this group (gloo): in that of the GPUs each would wait for its GPU."""
    global _host_group
    _host_group = group


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Sum ``values`` over the ranks, one by one.

    Args:
        values: numbers that the host knows.
        device: of the run, for a process group that was made without one of the host: NCCL knows only GPUs.
    """
    if not is_distributed():
        return values
    # Double precision: counts of tokens stay whole numbers.
    place = device if _host_group is None else torch.device("cpu")
    tensor = torch.tensor(values, dtype=torch.float64, device=place)
    dist.all_reduce(tensor, group=_host_group)
    return tensor.tolist()


def add_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the ranks, where it is; on a GPU nobody waits for it."""
    if is_distributed():
        dist.all_reduce(value)
    return value


def gather_objects(value: Any) -> list[Any]:
    """Give every rank's ``value``, which must be picklable, in the order of the ranks, on every rank."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Give rank 0's ``value``, which must be picklable, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_first_rank(action: Callable[[], Any]) -> Any:
    """Run ``action`` on rank 0 alone, and give its result, or raise its error, on every rank.

    Raises:
        GitLLMError: what ``action`` raised.
        StorageError: a file could not be written or read.
    """
    result, error = None, None
    if rank() == 0:
        try:
            with storage_errors("a file of the run"):
                result = action()
        except GitLLMError as raised:
            error = raised
        except OSError as raised:
            error = StorageError(f"{raised.filename}: {raised.strerror}")
    # The error travels as the result does: ranks that are not told would wait in the next exchange for ever.
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result
