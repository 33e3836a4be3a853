"""Data loaders over map-style data sets, in an order that seed and epoch determine."""

import atexit
import itertools
import signal
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.runners import collectives


def leave_signals_to_the_main_process(worker_id: int) -> None:
    """Let a signal that is sent to all processes end the main process first; workers end with it.

    The main process ends them with SIGTERM too, where :func:`end_workers` could not do it otherwise, and at its exit
    a second time: that one counts.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


_running: weakref.WeakSet[Any] = weakref.WeakSet()


def end_workers(iterators: Iterable[Any]) -> None:
    """End the worker processes of a loader's iterators, whoever still holds these.

    An iterator ends its workers when it is deleted, but the traceback of an exception in its loop keeps it.
    """
    for iterator in iterators:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


# Exit functions run last in, first out: before those of multiprocessing and torch, which were imported above.
# multiprocessing's sends each worker one SIGTERM and waits for it without end; torch's forbids to end workers.
atexit.register(lambda: end_workers(tuple(_running)))


class Loader(DataLoader):
    """A loader whose workers end with the interpreter."""

    def __iter__(self) -> _BaseDataLoaderIter:
        """An iterator, whose workers are known to :func:`end_workers`."""
        iterator = super().__iter__()
        _running.add(iterator)
        return iterator


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
            num_replicas=collectives.world_size(),
            rank=collectives.rank(),
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
    first, stride = (collectives.rank(), collectives.world_size()) if shared else (0, 1)
    return settings.loader(dataset, sampler=range(first, len(dataset), stride))


def num_batches(loader: Any) -> int | None:
    """How many batches a loader gives; None where it does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


def check_has_batches(loader: Any, split: str) -> None:
    """Refuse to train on a split that is smaller than one batch of all ranks.

    Raises:
        ConfigError: With the sizes.
    """
    if len(loader) > 0:
        return
    world = collectives.world_size()
    ranks = f" on each of {world} processes" if world > 1 else ""
    raise ConfigError(
        f"Split {split!r} has {len(loader.dataset)} items, fewer than one batch (run.batch_size_train="
        f"{loader.batch_size}{ranks}); make the batch smaller or give more data"
    )


def move_to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it, at any depth of dicts, lists and tuples, on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move_to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_to_device(item, device) for item in value)
    return value


def num_samples(batch: dict[str, Any]) -> int:
    """How many examples a batch of LAVIS's form holds: its texts, or the first thing that has a length."""
    if "text_input" in batch:
        return len(batch["text_input"])
    return next((len(value) for value in batch.values() if hasattr(value, "__len__")), 0)
