"""Repairs of LAVIS's own runners and builders, each one function that can go when LAVIS is fixed.

Where a runner or builder of this package stands in the place of LAVIS's, its own code does the right thing; these are
for LAVIS's ``runner_base``, ``runner_iter`` and data sets.
"""

import functools
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.patching import Repairs

_RUNNER = "lavis.runners.runner_base:RunnerBase"
_BUILDER = "lavis.datasets.builders.base_dataset_builder:BaseDatasetBuilder"
_REPAIRS = Repairs()
_repair = _REPAIRS.of


def repair_runners_and_builders() -> None:
    """Apply all repairs of this file; LAVIS must have been imported. Calling it again does nothing."""
    for repair in _REPAIRS:
        repair()


# ---------------------------------------------------------------------------------------------------------- runners


@_repair(f"{_RUNNER}.__new__")
def honour_configured_runner(original: Any) -> Any:
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

    return staticmethod(new_runner)


@_repair(f"{_RUNNER}.setup_output_dir")
def write_into_one_folder(original: Any) -> Any:
    """Each rank names the run's folder by its own clock, in steps of ten minutes: answers were missed now and then."""
    import torch.distributed

    @functools.wraps(original)
    def setup_output_dir(self):
        if torch.distributed.is_initialized():
            name = [self.job_id]
            torch.distributed.broadcast_object_list(name, src=0)
            (self.job_id,) = name
        original(self)

    return setup_output_dir


@_repair(f"{_RUNNER}.eval_epoch")
def evaluate_trained_weights(original: Any) -> Any:
    """Without training, the runners evaluate whatever weights there are, random ones as well."""

    @functools.wraps(original)
    def eval_epoch(self, split_name, cur_epoch, skip_reload=False):
        from gitllm_plugin.runners.trained_weights import trained_weights

        if self.evaluate_only or skip_reload:
            trained_weights(self.unwrap_dist_model(self.model), self.config)
        return original(self, split_name, cur_epoch, skip_reload)

    return eval_epoch


@_repair(f"{_RUNNER}.model")
def train_where_the_model_is(on_gpu: Any) -> Any:
    """On a CPU the runners' model is None, and DistributedDataParallel is given device ids that are none."""
    from torch.nn.parallel import DistributedDataParallel

    def model(self):
        if self.device.type != "cpu":
            return on_gpu.fget(self)
        if self._wrapped_model is None:
            self._wrapped_model = DistributedDataParallel(self._model) if self.use_distributed else self._model
        return self._wrapped_model

    return property(model)


@_repair("lavis.runners.runner_iter:RunnerIter._load_checkpoint")
def resume_at_the_next_iteration(load_and_skip_one: Any) -> Any:
    """``runner_iter`` resumes one iteration too far on, since a checkpoint says how many were done."""

    def load_checkpoint(self, url_or_filename):
        load_and_skip_one(self, url_or_filename)
        self.start_iters -= 1

    return load_checkpoint


@_repair("lavis.runners.runner_iter:RunnerIter.dataloaders")
def mix_by_ratios(original: Any) -> Any:
    """``train_dataset_ratios`` ends in an UnboundLocalError: the list of data sets has another name there."""
    from lavis.datasets.data_utils import reorg_datasets_by_split

    def dataloaders(self):
        run = self.config.run_cfg
        ratios = run.get("train_dataset_ratios", None)
        if ratios is None or self._dataloaders is not None:
            return original.fget(self)
        numbers = {name for name, ratio in ratios.items() if isinstance(ratio, (int, float)) and ratio >= 0}
        if set(ratios) != set(self.datasets) or len(numbers) < len(ratios):
            raise ConfigError(
                f"run.train_dataset_ratios is {dict(ratios)}, and the data sets are {', '.join(self.datasets)}; give a "
                "number of 0 or more for each of them"
            )
        trained = [float(ratios[name]) for name, splits in self.datasets.items() if "train" in splits]
        splits = reorg_datasets_by_split(self.datasets)
        self.datasets = {split: data[0] if len(data) == 1 else data for split, data in splits.items()}
        self._dataloaders = {}
        for split, data in sorted(self.datasets.items()):
            several = isinstance(data, (list, tuple))
            (self._dataloaders[split],) = self.create_loaders(
                datasets=[data],
                num_workers=run.num_workers,
                batch_sizes=[run.batch_size_train if split == "train" else run.batch_size_eval],
                is_trains=[split in self.train_splits],
                collate_fns=[[d.collater for d in data] if several else data.collater],
                dataset_ratios=trained if split == "train" else None,
            )
        return self._dataloaders

    return property(dataloaders)


@_repair(f"{_RUNNER}.create_loaders")
def tell_streams_how_they_are_read(unaware: Any) -> Any:
    """Streams do not learn the batch size or where training resumes, and are evaluated on once only.

    LAVIS's runners tell those streams that want to know before they make their loaders: see
    :class:`~gitllm_plugin.protocols.BatchingStream`, :class:`~gitllm_plugin.protocols.HostStream` and
    :class:`~gitllm_plugin.protocols.SharedStream`.
    """
    from torch.utils.data import DataLoader

    from gitllm_plugin.protocols import BatchingStream, HostStream, SharedStream, offers

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

    return create_loaders


def _members(dataset: Any) -> list[Any]:
    """List the data sets that LAVIS has put together: chained streams, and pairs of those with map-style ones."""
    from torch.utils.data import ChainDataset

    if isinstance(dataset, (list, tuple)):
        return [inner for member in dataset for inner in _members(member)]
    return list(dataset.datasets) if isinstance(dataset, ChainDataset) else [dataset]


# ------------------------------------------------------------------ runners where there is no GPU, or no process group


@_repair("lavis.runners.runner_base:PrefetchLoader")
def prefetch_with_a_gpu_only(original: Any) -> Any:
    """``PrefetchLoader`` makes a CUDA stream."""
    import torch

    return lambda loader: original(loader) if torch.cuda.is_available() else loader


@_repair("lavis.tasks.base_task:prepare_sample")
def move_samples_to_a_gpu_only_where_there_is_one(original: Any) -> Any:
    """``BaseTask.evaluation`` calls ``.cuda()``: the runner does not tell it the device."""
    import torch

    def prepare_sample(samples, cuda_enabled=True):
        return original(samples, cuda_enabled=cuda_enabled and torch.cuda.is_available())

    return prepare_sample


@_repair("lavis.runners.runner_base:dist", "lavis.runners.runner_iter:dist")
def wait_for_other_ranks_only_where_there_are_any(original: Any) -> Any:
    """``dist.barrier()`` is called without a process group."""
    import torch.distributed

    class Distributed:
        """torch.distributed, whose barrier lets a process alone pass."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.distributed, name)

        def barrier(self) -> None:
            if torch.distributed.is_initialized():
                torch.distributed.barrier()

    return Distributed()


# --------------------------------------------------------------------------------------------------------- builders


@_repair(f"{_BUILDER}.__init__")
def leave_out_null_splits(original: Any) -> Any:
    """LAVIS's builders want every split of a data set; to evaluate, nobody needs what is trained on.

    ``build_info.annotations.train: null`` leaves out a split.
    """

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        annotations = (self.config.get("build_info") or {}).get("annotations") or {}
        for split in [name for name, node in annotations.items() if node is None]:
            del annotations[split]

    return init
