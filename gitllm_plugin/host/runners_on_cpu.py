"""Repairs: LAVIS's own runners, `runner_base` and `runner_iter`, run on GPUs and in process groups only.

One function per defect; each acts only where the run's device is no GPU, or where there is no process group.
"""

from typing import Any


def repair_runners() -> None:
    """Apply all repairs. Calling it again does nothing."""
    from lavis.runners.runner_base import RunnerBase

    if "runs_on_cpu" in vars(RunnerBase):
        return
    _give_the_model_on_a_cpu()
    _prefetch_with_a_gpu_only()
    _move_samples_to_a_gpu_only_where_there_is_one()
    _wait_for_other_ranks_only_where_there_are_any()
    _resume_iterations_where_they_ended()
    setattr(RunnerBase, "runs_on_cpu", True)  # noqa: B010 - type checkers know no such attribute


def _give_the_model_on_a_cpu() -> None:
    """`RunnerBase.model` is None where the model already is on the device, and gives DDP device ids on a CPU."""
    from lavis.runners.runner_base import RunnerBase
    from torch.nn.parallel import DistributedDataParallel

    original: Any = RunnerBase.model

    def model(runner):
        if runner.device.type == "cuda":
            return original.fget(runner)
        if runner._wrapped_model is None:
            runner._wrapped_model = runner._model.to(runner.device)
            if runner.use_distributed:
                # A batch of texts without images leaves the projection unused.
                runner._wrapped_model = DistributedDataParallel(runner._model, find_unused_parameters=True)
        return runner._wrapped_model

    RunnerBase.model = property(model, doc=original.__doc__)


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


def _resume_iterations_where_they_ended() -> None:
    """`RunnerIter` saves how many iterations are done, and resumes one after the next."""
    from lavis.runners.runner_iter import RunnerIter

    original = RunnerIter._load_checkpoint

    def load_checkpoint(runner, url_or_filename):
        original(runner, url_or_filename)
        runner.start_iters -= 1

    RunnerIter._load_checkpoint = load_checkpoint
