"""Repairs: LAVIS's own runners, `runner_base` and `runner_iter`, need a GPU and a process group.

One function per defect; each acts only where there is no GPU, or no process group.
"""

from typing import Any


def run_without_gpu() -> None:
    """Apply all repairs. Calling it again does nothing."""
    from lavis.runners.runner_base import RunnerBase

    if "runs_without_gpu" in vars(RunnerBase):
        return
    _prefetch_with_a_gpu_only()
    _move_samples_to_a_gpu_only_where_there_is_one()
    _wait_for_other_ranks_only_where_there_are_any()
    setattr(RunnerBase, "runs_without_gpu", True)  # noqa: B010 - type checkers know no such attribute


def _prefetch_with_a_gpu_only() -> None:
    """`PrefetchLoader` makes a CUDA stream."""
    import torch
    from lavis.runners import runner_base

    original = runner_base.PrefetchLoader
    runner_base.PrefetchLoader = lambda loader: original(loader) if torch.cuda.is_available() else loader


def _move_samples_to_a_gpu_only_where_there_is_one() -> None:
    """`BaseTask.evaluation` calls `.cuda()`: the runner does not tell it the device."""
    import torch
    from lavis.tasks import base_task

    original = base_task.prepare_sample

    def prepare_sample(samples, cuda_enabled=True):
        return original(samples, cuda_enabled=cuda_enabled and torch.cuda.is_available())

    base_task.prepare_sample = prepare_sample


def _wait_for_other_ranks_only_where_there_are_any() -> None:
    """`dist.barrier()` is called without a process group."""
    import torch.distributed
    from lavis.runners import runner_base, runner_iter

    class Distributed:
        """torch.distributed, whose barrier lets a process alone pass."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.distributed, name)

        def barrier(self) -> None:
            if torch.distributed.is_initialized():
                torch.distributed.barrier()

    runner_base.dist = runner_iter.dist = Distributed()
