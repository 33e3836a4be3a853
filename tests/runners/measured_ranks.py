"""The memory of a training step of a model that FSDP2 spreads over ranks, measured on each and computed.

`torchrun measured_ranks.py FAMILY PRECISION TRAINABLE [checkpointed]` prints both numbers of bytes, of the rank that
held the most.
"""

import sys

import torch
import torch.distributed as dist
from measured_step import DTYPES, build, measure, step_of

from gitllm_plugin.runners.memory import fsdp_peaks
from gitllm_plugin.runners.parallel import shard


def main(family: str, dtype: str, trainable: str, checkpointed: str = "") -> None:
    """Print bytes measured and computed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    count, rank = dist.get_world_size(), dist.get_rank()
    step = step_of(build(family, DTYPES[dtype], trainable, bool(checkpointed)), DTYPES[dtype])
    shard(step.model, torch.device("cpu"))
    measured = [0] * count
    dist.all_gather_object(measured, measure(step))
    dist.destroy_process_group()
    if rank == 0:
        step = step_of(build(family, DTYPES[dtype], trainable, bool(checkpointed)), DTYPES[dtype])
        print(max(measured), fsdp_peaks(step)[0][count])


if __name__ == "__main__":
    main(*sys.argv[1:])
