"""Loaders over data sets, and random numbers that depend on where in a run they are drawn.

Order and items of a map-style data set are a function of seed, epoch and index alone, so that a resumed run reads what
the uninterrupted one read, with any number of worker processes and ranks.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler, IterableDataset

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import Loader, leave_signals_to_the_main_process
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import BatchingStream, CollatingData, SharedStream, offers


def seed_everything(*position: int) -> None:
    """Seed Python, NumPy and torch from a position such as ``(seed, rank, epoch, iteration)``.

    Each forward pass is seeded afresh, so a run resumed anywhere draws what the uninterrupted run drew, whatever
    was drawn in between: by worker processes or none, by an evaluation, by building the model.
    """
    seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeededItems(Dataset):
    """A map-style data set whose items draw their random numbers from seed, epoch and index alone.

    So augmentation is the same with any number of worker processes and ranks, and after resuming.

    Args:
        dataset: map-style.
        seed: of the run.

    Attributes:
        epoch: to be set before workers start: each has its own copy of this object.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset: Any = dataset
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Give the item, drawn as the epoch determines."""
        seed_everything(self.seed, self.epoch, index)
        return self.dataset[index]


class EpochSampler(DistributedSampler):
    """This rank's share of a shuffle that seed and epoch determine, from any batch of the epoch on.

    Rank r of W takes every W-th index of one shuffle, so batch b of all ranks together holds what batch b of
    one process with W times the batch size holds. Indices that do not divide among the ranks are left out.

    Args:
        dataset: map-style.
        seed: of the shuffles, the same on all ranks.
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
        """Give this rank's indices from ``start`` on."""
        return itertools.islice(super().__iter__(), self.start, None)


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: items per batch and rank.
        num_workers: worker processes.
        pin_memory: for faster copies to a GPU.
    """

    batch_size: int
    num_workers: int = 0
    pin_memory: bool = False

    def loader(self, dataset: Any, **arguments: Any) -> Loader:
        """Make a loader of ``dataset``, with its own ``collater`` where it has one.

        Args:
            dataset: a :class:`~gitllm_plugin.protocols.BatchingStream` is told the size of batches.
            **arguments: of torch's ``DataLoader``, in addition or in the place of these settings' own.
        """
        if offers(dataset, BatchingStream):
            dataset.set_batch_size(self.batch_size)
        return Loader(
            cast(Any, dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_signals_to_the_main_process,
            **{"collate_fn": collate_of(dataset), **arguments},
        )


def collate_of(dataset: Any) -> Callable[[list[Any]], dict[str, Any]] | None:
    """Find what makes batches of a data set's items: its own ``collater``; None: torch's function."""
    return dataset.collater if offers(dataset, CollatingData) else None


def evaluation_loader(dataset: Any, settings: LoaderSettings, shared: bool) -> Loader:
    """Make a loader in the data set's order, the last batch included.

    Args:
        dataset: map-style, or a stream, which shares itself among the ranks unless a
            :class:`~gitllm_plugin.protocols.SharedStream` is told otherwise.
        settings: how batches are made.
        shared: whether the ranks share the examples, each in exactly one of them, or each reads all.
    """
    if isinstance(dataset, IterableDataset):
        if offers(dataset, SharedStream):
            dataset.set_shared(shared)
        return settings.loader(dataset)
    # Not torch's DistributedSampler, which repeats examples until all ranks have as many: they would count twice.
    first, stride = (ranks.rank(), ranks.world_size()) if shared else (0, 1)
    return settings.loader(dataset, sampler=range(first, len(dataset), stride))


def check_has_batches(loader: Any, split: str) -> None:
    """Refuse to train on a split that is smaller than one batch of all ranks.

    Raises:
        ConfigError: it is; with the sizes.
    """
    if len(loader) > 0:
        return
    world = ranks.world_size()
    shares = f" on each of {world} processes" if world > 1 else ""
    raise ConfigError(
        f"Split {split!r} has {len(loader.dataset)} items, fewer than one batch (run.batch_size_train="
        f"{loader.batch_size}{shares}); make the batch smaller or give more data"
    )
