"""Repairs of LAVIS's own runners and builders, each one function that can go when LAVIS is fixed.

Where a runner or builder of this package stands in the place of LAVIS's, its own code does the right thing; these are
for LAVIS's ``runner_base``, ``runner_iter`` and data sets.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

_REPAIRS: list[Callable[[], None]] = []


def repair_runners_and_builders() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    for repair in _REPAIRS:
        repair()


def _repair(function: Callable[[], None]) -> Callable[[], None]:
    """Make a function a repair, which is done once a process: a second time it would wrap its own work."""
    once = functools.cache(function)
    _REPAIRS.append(once)
    return once


# ---------------------------------------------------------------------------------------------------------- runners


@_repair
def honour_configured_runner() -> None:
    """LAVIS's ``evaluate.py`` builds ``RunnerBase`` whatever ``run.runner`` says.

    ``RunnerBase(cfg=...)`` gives the runner that ``cfg`` names, where a plugin registered it. LAVIS's own runners are
    left as they are.
    """
    from lavis.common.registry import registry
    from lavis.runners.runner_base import RunnerBase

    def new_runner(cls, cfg, *args, **kwargs):
        named = registry.mapping["runner_name_mapping"].get(cfg.run_cfg.get("runner"), RunnerBase)
        if cls is RunnerBase and issubclass(named, RunnerBase) and not named.__module__.startswith("lavis."):
            cls = named
        return object.__new__(cls)

    setattr(RunnerBase, "__new__", new_runner)  # noqa: B010 - type checkers want object's signature here


@_repair
def train_where_the_model_is() -> None:
    """On a CPU the runners' model is None, and DistributedDataParallel is given device ids that are none."""
    from lavis.runners.runner_base import RunnerBase
    from torch.nn.parallel import DistributedDataParallel

    on_gpu: Any = RunnerBase.model.fget

    def model(self):
        if self.device.type != "cpu":
            return on_gpu(self)
        if self._wrapped_model is None:
            self._wrapped_model = DistributedDataParallel(self._model) if self.use_distributed else self._model
        return self._wrapped_model

    setattr(RunnerBase, "model", property(model))  # noqa: B010 - type checkers want the property's setter here


@_repair
def resume_at_the_next_iteration() -> None:
    """``runner_iter`` resumes one iteration too far on, since a checkpoint says how many were done."""
    from lavis.runners.runner_iter import RunnerIter

    load_and_skip_one = RunnerIter._load_checkpoint

    def load_checkpoint(self, url_or_filename):
        load_and_skip_one(self, url_or_filename)
        self.start_iters -= 1

    RunnerIter._load_checkpoint = load_checkpoint


@_repair
def tell_streams_how_they_are_read() -> None:
    """Streams do not learn the batch size or where training resumes, and are evaluated on once only.

    LAVIS's runners tell those streams that want to know before they make their loaders: see
    :class:`~gitllm_plugin.protocols.BatchingStream`, :class:`~gitllm_plugin.protocols.HostStream` and
    :class:`~gitllm_plugin.protocols.SharedStream`.
    """
    from lavis.runners.runner_base import RunnerBase
    from torch.utils.data import DataLoader

    from gitllm_plugin.protocols import BatchingStream, HostStream, SharedStream, offers

    unaware = RunnerBase.create_loaders

    def create_loaders(self, datasets, num_workers, batch_sizes, is_trains, collate_fns, dataset_ratios=None):
        loaders = []
        for dataset, batch_size, is_train, collate_fn in zip(
            datasets, batch_sizes, is_trains, collate_fns, strict=True
        ):
            streams: list[Any] = [member for member in _members(dataset) if offers(member, BatchingStream)]
            for stream in streams:
                stream.set_batch_size(batch_size)
                if is_train and offers(stream, HostStream):
                    stream.skip_batches(getattr(self, "start_iters", 0))
                if not is_train and offers(stream, SharedStream):
                    stream.set_shared(self.use_dist_eval_sampler)
            if streams and not is_train:
                # LAVIS gives an iterator in the place of a stream's loader, which is empty at the second evaluation.
                loaders.append(DataLoader(streams[0], batch_size=batch_size, num_workers=num_workers))
            else:
                loaders += unaware(self, [dataset], num_workers, [batch_size], [is_train], [collate_fn], dataset_ratios)
        return loaders

    RunnerBase.create_loaders = create_loaders


def _members(dataset: Any) -> list[Any]:
    """List the data sets that LAVIS has put together: chained streams, and pairs of those with map-style ones."""
    from torch.utils.data import ChainDataset

    if isinstance(dataset, (list, tuple)):
        return [inner for member in dataset for inner in _members(member)]
    return list(dataset.datasets) if isinstance(dataset, ChainDataset) else [dataset]


# ------------------------------------------------------------------ runners where there is no GPU, or no process group


@_repair
def prefetch_with_a_gpu_only() -> None:
    """``PrefetchLoader`` makes a CUDA stream."""
    import torch
    from lavis.runners import runner_base

    original = runner_base.PrefetchLoader
    runner_base.PrefetchLoader = lambda loader: original(loader) if torch.cuda.is_available() else loader


@_repair
def move_samples_to_a_gpu_only_where_there_is_one() -> None:
    """``BaseTask.evaluation`` calls ``.cuda()``: the runner does not tell it the device."""
    import torch
    from lavis.tasks import base_task

    original = base_task.prepare_sample

    def prepare_sample(samples, cuda_enabled=True):
        return original(samples, cuda_enabled=cuda_enabled and torch.cuda.is_available())

    base_task.prepare_sample = prepare_sample


@_repair
def wait_for_other_ranks_only_where_there_are_any() -> None:
    """``dist.barrier()`` is called without a process group."""
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


# --------------------------------------------------------------------------------------------------------- builders


@_repair
def leave_out_null_splits() -> None:
    """LAVIS's builders want every split of a data set; to evaluate, nobody needs what is trained on.

    ``build_info.annotations.train: null`` leaves out a split.
    """
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    original = BaseDatasetBuilder.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        annotations = (self.config.get("build_info") or {}).get("annotations") or {}
        for split in [name for name, node in annotations.items() if node is None]:
            del annotations[split]

    BaseDatasetBuilder.__init__ = init


@_repair
def download_only_what_is_missing() -> None:
    """LAVIS's builders want the address of every file that is already there, and as many addresses as files."""
    from lavis.common.utils import get_cache_path
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder

    original = BaseDatasetBuilder._download_ann

    @functools.wraps(original)
    def download(self: Any) -> None:
        nodes = self.config.build_info.annotations.values()
        paths = [node.storage for node in nodes]
        files = [path for given in paths for path in ([given] if isinstance(given, str) else given)]
        # What is relative lies in LAVIS's cache; `get_cache_path` leaves absolute paths as they are.
        if not all(Path(get_cache_path(path)).is_file() for path in files):
            original(self)

    BaseDatasetBuilder._download_ann = download
