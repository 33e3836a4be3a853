"""Data loaders over map-style data sets, in an order that seed and epoch determine."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, DistributedSampler, IterableDataset

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import Loader, leave_signals_to_the_main_process
from gitllm_plugin.errors import ConfigError


class EpochSampler(DistributedSampler):
    """This rank's share of a shuffle that seed and epoch determine, from any batch of the epoch on.

    Rank r of W takes every W-th index of one shuffle, so batch b of all ranks together holds what batch b of
    one process with W times the batch size holds. Indices that do not divide among the ranks are left out.

    Args:
        dataset: Map-style.
        seed: Of the shuffles, the same on all ranks.
    """

    def __init__(self, dataset: Dataset, seed: int):
        super().__init__(
            dataset,
            num_replicas=ranks.world_size(),
            rank=ranks.rank(),
            shuffle=True,
            seed=seed,
            drop_last=True,
        )
        self.start = 0

    def set_position(self, epoch: int, start: int) -> None:
        """Choose the epoch's order and how many of this rank's indices are skipped at its beginning."""
        self.set_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        """This rank's indices from `start` on."""
        return itertools.islice(super().__iter__(), self.start, None)


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: Items per batch and rank.
        num_workers: Worker processes.
        pin_memory: For faster copies to a GPU.
    """

    batch_size: int
    num_workers: int = 0
    pin_memory: bool = False

    def loader(self, dataset: Any, **arguments: Any) -> Loader:
        """A loader of `dataset` with its own `collater`, where it has one.

        A stream with `set_batch_size` deals whole batches to its workers, so that their number changes nothing.
        """
        if hasattr(dataset, "set_batch_size"):
            dataset.set_batch_size(self.batch_size)
        arguments = {"collate_fn": getattr(dataset, "collater", None), **arguments}
        return Loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_signals_to_the_main_process,
            **arguments,
        )


def evaluation_loader(dataset: Any, settings: LoaderSettings, shared: bool) -> Loader:
    """A loader in the data set's order, the last batch included.

    Args:
        dataset: Map-style, or a stream, which shares itself among the ranks unless its `set_shared` says otherwise.
        settings: How batches are made.
        shared: Whether the ranks share the examples, each in exactly one of them, or each reads all.
    """
    if isinstance(dataset, IterableDataset):
        if hasattr(dataset, "set_shared"):
            dataset.set_shared(shared)
        return settings.loader(dataset)
    first, stride = (ranks.rank(), ranks.world_size()) if shared else (0, 1)
    return settings.loader(dataset, sampler=range(first, len(dataset), stride))


def check_has_batches(loader: Any, split: str) -> None:
    """Refuse to train on a split that is smaller than one batch of all ranks.

    Raises:
        ConfigError: With the sizes.
    """
    if len(loader) > 0:
        return
    world = ranks.world_size()
    shares = f" on each of {world} processes" if world > 1 else ""
    raise ConfigError(
        f"Split {split!r} has {len(loader.dataset)} items, fewer than one batch (run.batch_size_train="
        f"{loader.batch_size}{shares}); make the batch smaller or give more data"
    )
