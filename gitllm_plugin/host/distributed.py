"""Repair: LAVIS starts distributed runs on NCCL and CUDA only, and sums its meters on CUDA only.

Here a run on CPU uses gloo. torchrun and SLURM are understood, as in LAVIS.
"""

import atexit
import datetime
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gitllm_plugin.common import ranks
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.errors import ConfigError, LostProcessError, first_line

# Where `run.step_timeout_minutes` asks for no bound. LAVIS waits a year, so that one rank may download a data set.
_LONGEST = datetime.timedelta(hours=24)
DEFAULT_PORT = 29500

# Gloo's threads free the tensors of the last collective, for which they need Python's lock. One that asks for it while
# the interpreter ends takes the process down (SIGABRT, in about one of 25 runs): so much time they have before.
_SECONDS_FOR_THREADS = 0.2


def replace_init_distributed_mode() -> None:
    """Put ``init_distributed_mode`` in the place of LAVIS's; scripts that import it afterwards get this one."""
    from lavis.common import dist_utils

    dist_utils.init_distributed_mode = init_distributed_mode


def repair_metric_sync() -> None:
    """Let ``SmoothedValue.synchronize_between_processes`` sum on the device its process group works on."""
    from lavis.common.logger import SmoothedValue

    SmoothedValue.synchronize_between_processes = _synchronize_between_processes


def init_distributed_mode(args) -> None:
    """Join the process group that torchrun or SLURM describes in the environment, if there is one.

    Args:
        args: LAVIS's run configuration; ``device`` and ``dist_url`` are read. Set on it: ``distributed``, ``rank``,
            ``world_size``, ``gpu`` (local rank) and, where distributed, ``dist_backend`` ("nccl" or "gloo").

    Raises:
        ConfigError: the environment describes a group only in part, or there are more processes than GPUs.
        LostProcessError: another rank does not come within ``run.step_timeout_minutes``.
    """
    import torch
    import torch.distributed as dist
    from lavis.common.dist_utils import setup_for_distributed

    place = _torchrun_place() or _slurm_place()
    args.distributed = place is not None
    args.rank, args.world_size, args.gpu = place or (0, 1, 0)
    if place is None:
        return

    on_cuda = str(args.get("device", "cuda")).partition(":")[0] != "cpu" and torch.cuda.is_available()
    args.dist_backend = "nccl" if on_cuda else "gloo"
    if on_cuda:
        _choose_gpu(args.gpu)
    if not dist.is_initialized():
        url = args.get("dist_url") or "env://"
        place_and_means = f"rank {args.rank}, world {args.world_size}, {args.dist_backend}"
        print(f"| distributed init ({place_and_means}): {url}", flush=True)
        given = args.get("step_timeout_minutes")
        minutes = float(RunSettings.step_timeout_minutes if given is None else given)
        with _missing_ranks_told(args, minutes):
            dist.init_process_group(
                backend=args.dist_backend,
                init_method=url,
                world_size=args.world_size,
                rank=args.rank,
                timeout=_timeout(minutes),
            )
            if args.dist_backend == "gloo":
                atexit.register(time.sleep, _SECONDS_FOR_THREADS)
            else:
                ranks.set_host_group(dist.new_group(backend="gloo", timeout=_timeout(minutes)))
            dist.barrier()
    else:
        dist.barrier()
    setup_for_distributed(args.rank == 0)


def _timeout(minutes: float) -> datetime.timedelta:
    """Give how long ranks wait for each other: a little longer than the run's watchdog, which says more."""
    return datetime.timedelta(minutes=1.1 * minutes, seconds=2) if minutes else _LONGEST


@contextmanager
def _missing_ranks_told(args: Any, minutes: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's of waiting and of lost connections are all of this class
        raise LostProcessError(
            f"rank {args.rank} of {args.world_size} has not met the others at the start, for which there are "
            f"{minutes:g} minutes (run.step_timeout_minutes): one of them has not started, hangs or is gone. Look "
            f"at what each rank printed last ({first_line(error)})"
        ) from error


def _choose_gpu(local_rank: int) -> None:
    import torch

    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU: this machine shows {torch.cuda.device_count()}. "
            "Start as many processes per machine as it has GPUs, or run with run.device=cpu."
        )
    torch.cuda.set_device(local_rank)


def _torchrun_place() -> tuple[int, int, int] | None:
    """(rank, world size, local rank) from torchrun's environment, or None."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("RANK and WORLD_SIZE are set but LOCAL_RANK is not. Start the run with torchrun.")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


def _slurm_place() -> tuple[int, int, int] | None:
    """(rank, world size, local rank) from SLURM's environment, or None; sets what ``env://`` reads.

    A shell inside an allocation has SLURM's variables too, with one task: that is no distributed run.
    """
    if "SLURM_PROCID" not in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return None
    os.environ.setdefault("MASTER_ADDR", first_slurm_node(os.environ["SLURM_STEP_NODELIST"]))
    os.environ.setdefault("MASTER_PORT", str(DEFAULT_PORT + int(os.environ["SLURM_JOB_ID"]) % 1000))
    return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_LOCALID"])


def first_slurm_node(nodelist: str) -> str:
    """Give the first host of a SLURM node list: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    return re.sub(r"\[(\w+)[^\]]*\].*", r"\1", re.split(r",(?![^\[]*\])", nodelist)[0])


def _synchronize_between_processes(self) -> None:
    """Sum ``count`` and ``total`` over all processes; the window of recent values stays each process's own."""
    import torch
    import torch.distributed as dist
    from lavis.common import dist_utils

    if not dist_utils.is_dist_avail_and_initialized():
        return
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    sums = torch.tensor([self.count, self.total], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    count, self.total = sums.tolist()
    self.count = int(count)
