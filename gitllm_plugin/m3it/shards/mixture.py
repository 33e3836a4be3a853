"""Which items a set of shards holds, how many of each configuration an epoch has, and in which order they come.

An item is a record, or a share of one: up to so many of its texts, with its images. Items have numbers, by
configuration, shard, record and text; all that is known of them comes from the manifest, and arrays hold it: 6 bytes
an item and 20 a record.

An epoch's order is a pure function of (seed, epoch) over the item table. Nothing is drawn while training, so a place
in training is one number, every process computes the same order for itself, and what a run sees depends neither on
workers nor on ranks.

A configuration is read in passes: its shards in random order, a few of them at a time, the items of those in random
order. Every item comes once a pass. An epoch takes the next so many items of each configuration's passes, and mixes
the configurations at random. Shares are therefore exact in each epoch and not only on average, and where an epoch
takes all items of all configurations, each comes once. A few shards at a time, because a shuffle over everything
would touch every file at once: on network storage and with shards that must be fetched first, that is what one
cannot afford.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.shards.format import Manifest, Shard

TAR_BLOCK = 512


@dataclass(frozen=True)
class Item:
    """Where an item is.

    Attributes:
        shard: the file that holds its record.
        record: which record of the file, from 0.
        offset: where the record begins, in bytes.
        size: how many bytes it has.
        texts: which of its texts.
    """

    shard: Shard
    record: int
    offset: int
    size: int
    texts: slice


class ItemTable:
    """The items of one split.

    Args:
        manifest: the manifest of the folder.
        configs: names of configurations, in order.
        split: ``train``, ``val`` or ``test``. Configurations without it are passed over.
        texts_per_image: the most texts of one item.

    Attributes:
        shards: all files, in order.
        shard_items: int64 [shards + 1]: file s has the items from ``shard_items[s]`` to before ``shard_items[s + 1]``.
        config_shards: the range of ``shards`` of each configuration that has the split.

    Raises:
        DataError: if none of the configurations has the split.
    """

    def __init__(self, manifest: Manifest, configs: Iterable[str], split: str, texts_per_image: int):
        self.split = split
        self.texts_per_image = texts_per_image
        self.shards: list[Shard] = []
        self.config_shards: dict[str, range] = {}
        for config in configs:
            found = manifest.configs[config].get(split)
            if found is not None and found.groups:
                first = len(self.shards)
                self.shards += found.shards
                self.config_shards[config] = range(first, len(self.shards))
        if not self.shards:
            raise DataError(f"none of {', '.join(manifest.configs)} has a split {split!r} with records")
        self._index()

    def __len__(self) -> int:
        return len(self._record_of)

    def __getitem__(self, item: int) -> Item:
        record = int(self._record_of[item])
        shard = int(np.searchsorted(self._shard_records, record, side="right")) - 1
        first = int(self._first_text[item])
        return Item(
            shard=self.shards[shard],
            record=record - int(self._shard_records[shard]),
            offset=int(self._offset[record]),
            size=int(self._size[record]),
            texts=slice(first, first + self.texts_per_image),
        )

    def config_items(self, config: str) -> range:
        """Return the items of a configuration."""
        shards = self.config_shards[config]
        return range(int(self.shard_items[shards.start]), int(self.shard_items[shards.stop]))

    @property
    def num_texts(self) -> int:
        """The number of texts of all items."""
        return sum(shard.texts for shard in self.shards)

    @property
    def num_records(self) -> int:
        """The number of records: images, or lists of images."""
        return len(self._size)

    def _index(self) -> None:
        # Sizes of all records come before their places; a record begins where those before it in its file end.
        blocks = [_numbers(shard.record_blocks) for shard in self.shards]
        items = [-(-_numbers(shard.record_texts) // self.texts_per_image) for shard in self.shards]  # rounded up
        self._size = np.concatenate(blocks) * TAR_BLOCK
        self._offset = np.concatenate([np.cumsum(sizes) - sizes for sizes in blocks]) * TAR_BLOCK
        self._shard_records = _starts([len(sizes) for sizes in blocks])
        self.shard_items = _starts([int(counts.sum()) for counts in items])
        counts = np.concatenate(items)
        self._record_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        within = np.arange(len(self._record_of)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._first_text = (within * self.texts_per_image).astype(np.int32)


def records_of(shard: Shard) -> Iterator[Item]:
    """Make each record of a shard one item with all its texts, in order."""
    sizes = _numbers(shard.record_blocks) * TAR_BLOCK
    for record, (size, end) in enumerate(zip(sizes.tolist(), np.cumsum(sizes).tolist(), strict=True)):
        yield Item(shard, record, end - size, size, slice(None))


def choose_quotas(
    counts: Mapping[str, int],
    *,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    items_per_epoch: int | None = None,
) -> dict[str, int]:
    """Choose how many items of each configuration an epoch has.

    Args:
        counts: how many items each configuration has.
        weights: the share of each configuration, in any unit; None: shares go by size.
        temperature: without weights, shares are proportional to size ** (1 / temperature): 1 takes every item once,
            more lifts small configurations, and with infinity all are equal.
        items_per_epoch: the length of an epoch; None: as many as there are items.

    Returns:
        Numbers that sum up to the length, each within one of its exact share.

    Raises:
        ConfigError: if weights do not name the configurations, or a number is out of range.
    """
    if weights is not None and temperature != 1.0:
        raise ConfigError("weights and temperature are given; weights say all, so leave temperature out")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature!r}, expected more than 0")
    if items_per_epoch is not None and items_per_epoch < 1:
        raise ConfigError(f"items_per_epoch is {items_per_epoch!r}, expected 1 or more")
    if weights is not None:
        _check_weights(counts, weights)
    sizes = np.array(list(counts.values()), dtype=np.float64)
    # Divided by the largest first: with a temperature near 0 the power of a count would be infinite.
    raw = (sizes / sizes.max()) ** (1 / temperature) if weights is None else [weights[name] for name in counts]
    shares = np.array(raw, dtype=np.float64)
    exact = shares / shares.sum() * (items_per_epoch or sizes.sum())
    # A share that is whole but for rounding is whole: an epoch over everything takes each item exactly once.
    quotas = np.floor(exact + 1e-9).astype(int)
    left = int(round(exact.sum())) - int(quotas.sum())
    # To those that were cut most; stable, so that equal ones come out alike everywhere.
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    return dict(zip(counts, quotas.tolist(), strict=True))


class EpochOrder:
    """The order of training.

    Args:
        table: the items.
        quotas: how many items of each configuration an epoch has (:func:`choose_quotas`).
        seed: of all that is random.
        shuffle_shards: how many shards of a configuration are mixed at a time.
    """

    def __init__(self, table: ItemTable, quotas: Mapping[str, int], seed: int, shuffle_shards: int):
        self.table = table
        self.quotas = dict(quotas)
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self._epoch, self._order = -1, np.empty(0, dtype=np.int32)

    def __len__(self) -> int:
        """Return the number of items of an epoch."""
        return sum(self.quotas.values())

    def item_at(self, position: int, further: int = 0) -> int:
        """Return the number of the item at a position of training, which runs on from epoch to epoch.

        Args:
            position: from 0.
            further: so many places behind it, from the epoch's end on to its beginning.
        """
        # One epoch is kept: positions rise, and an order of millions of items takes a while to make.
        epoch, place = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.of_epoch(epoch)
        return int(self._order[(place + further) % len(self)])

    def of_epoch(self, epoch: int) -> np.ndarray:
        """Put the items of an epoch in order: their numbers, int32."""
        names = list(self.quotas)
        labels = np.repeat(np.arange(len(names), dtype=np.int16), list(self.quotas.values()))
        # Which configuration comes when is drawn apart from which of its items: both must be as in every run before.
        np.random.default_rng([self.seed, epoch]).shuffle(labels)
        order = np.empty(len(labels), dtype=np.int32)
        for label, name in enumerate(names):
            order[labels == label] = self._stretch(name, epoch)
        return order

    def _stretch(self, config: str, epoch: int) -> np.ndarray:
        """Take the items of a configuration that an epoch has: a stretch of its endless passes."""
        quota, size = self.quotas[config], len(self.table.config_items(config))
        first = epoch * quota
        passes = range(first // size, -(-(first + quota) // size))
        items = np.concatenate([self._pass(config, number) for number in passes] or [np.empty(0, dtype=np.int32)])
        return items[first - passes.start * size :][:quota]

    def _pass(self, config: str, number: int) -> np.ndarray:
        """Shuffle all items of a configuration, each once."""
        shards = self.table.config_shards[config]
        # The first shard's number tells configurations apart, so that two of one size get orders of their own.
        generator = np.random.default_rng([self.seed, number, shards.start])
        bounds = self.table.shard_items.tolist()
        order = generator.permutation(np.array(shards)).tolist()
        windows = []
        for start in range(0, len(order), self.shuffle_shards):
            window = order[start : start + self.shuffle_shards]
            items = np.concatenate([np.arange(bounds[s], bounds[s + 1], dtype=np.int32) for s in window])
            windows.append(generator.permutation(items))
        return np.concatenate(windows)


def _check_weights(counts: Mapping[str, int], weights: Mapping[str, float]) -> None:
    problems = [f"{name!r} has no weight" for name in counts if name not in weights]
    problems += [f"{name!r} is not among the data" for name in weights if name not in counts]
    problems += [f"{name!r} has the weight {weight!r}" for name, weight in weights.items() if not weight > 0]
    if problems:
        known = ", ".join(counts)
        raise ConfigError(
            f"weights: {'; '.join(problems)}. Give each of {known} a number above 0, or leave it out of configs"
        )


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.int64)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])
