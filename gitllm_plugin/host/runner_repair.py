"""Repairs of LAVIS's own runners, each one function that can go when LAVIS is fixed; calling one again does nothing."""

from typing import Any


def repair_runners() -> None:
    """All repairs of this file."""
    honour_configured_runner()
    train_where_the_model_is()
    resume_at_the_next_iteration()
    tell_streams_how_they_are_read()


def honour_configured_runner() -> None:
    """Repair: LAVIS's `evaluate.py` builds `RunnerBase` whatever `run.runner` says.

    `RunnerBase(cfg=...)` gives the runner that `cfg` names, where a plugin registered it. LAVIS's own runners are
    left as they are.
    """
    from lavis.common.registry import registry
    from lavis.runners.runner_base import RunnerBase

    if "__new__" in vars(RunnerBase):
        return

    def new_runner(cls, cfg, *args, **kwargs):
        named = registry.mapping["runner_name_mapping"].get(cfg.run_cfg.get("runner"), RunnerBase)
        if cls is RunnerBase and issubclass(named, RunnerBase) and not named.__module__.startswith("lavis."):
            cls = named
        return object.__new__(cls)

    setattr(RunnerBase, "__new__", new_runner)  # noqa: B010 - type checkers want object's signature here


def train_where_the_model_is() -> None:
    """Repair: on a CPU the runners' model is None, and DistributedDataParallel is given device ids that are none."""
    from lavis.runners.runner_base import RunnerBase
    from torch.nn.parallel import DistributedDataParallel

    on_gpu: Any = RunnerBase.model.fget
    if on_gpu.__module__ == __name__:
        return

    def model(self):
        if self.device.type != "cpu":
            return on_gpu(self)
        if self._wrapped_model is None:
            self._wrapped_model = DistributedDataParallel(self._model) if self.use_distributed else self._model
        return self._wrapped_model

    setattr(RunnerBase, "model", property(model))  # noqa: B010 - type checkers want the property's setter here


def resume_at_the_next_iteration() -> None:
    """Repair: `runner_iter` resumes one iteration too far on, since a checkpoint says how many were done."""
    from lavis.runners.runner_iter import RunnerIter

    load_and_skip_one = RunnerIter._load_checkpoint
    if load_and_skip_one.__module__ == __name__:
        return

    def load_checkpoint(self, url_or_filename):
        load_and_skip_one(self, url_or_filename)
        self.start_iters -= 1

    RunnerIter._load_checkpoint = load_checkpoint


def tell_streams_how_they_are_read() -> None:
    """Repair: streams do not learn the batch size or where training resumes, and are evaluated on once only.

    LAVIS's runners tell those streams that want to know before they make their loaders: see
    :class:`~gitllm_plugin.protocols.BatchingStream`, :class:`~gitllm_plugin.protocols.HostStream` and
    :class:`~gitllm_plugin.protocols.SharedStream`.
    """
    from lavis.runners.runner_base import RunnerBase
    from torch.utils.data import DataLoader

    from gitllm_plugin.protocols import BatchingStream, HostStream, SharedStream, offers

    unaware = RunnerBase.create_loaders
    if unaware.__module__ == __name__:
        return

    def create_loaders(self, datasets, num_workers, batch_sizes, is_trains, collate_fns, dataset_ratios=None):
        loaders = []
        for dataset, batch_size, is_train, collate_fn in zip(
            datasets, batch_sizes, is_trains, collate_fns, strict=True
        ):
            streams: list[Any] = [part for part in _parts(dataset) if offers(part, BatchingStream)]
            for stream in streams:
                stream.set_batch_size(batch_size)
                if is_train and offers(stream, HostStream):
                    stream.skip_batches(getattr(self, "start_iters", 0))
                if not is_train and offers(stream, SharedStream):
                    stream.set_shared(self.use_dist_eval_sampler)
            if streams and not is_train:
                loaders.append(DataLoader(streams[0], batch_size=batch_size, num_workers=num_workers))
            else:
                loaders += unaware(self, [dataset], num_workers, [batch_size], [is_train], [collate_fn], dataset_ratios)
        return loaders

    RunnerBase.create_loaders = create_loaders


def _parts(dataset: Any) -> list[Any]:
    """The data sets that LAVIS has put together: chained streams, and pairs of those with map-style ones."""
    from torch.utils.data import ChainDataset

    if isinstance(dataset, (list, tuple)):
        return [part for member in dataset for part in _parts(member)]
    return list(dataset.datasets) if isinstance(dataset, ChainDataset) else [dataset]
