"""How much of each configuration an epoch has, and in which order it comes.

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

from collections.abc import Mapping

import numpy as np

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.shards.table import ItemTable


def choose_quotas(
    counts: Mapping[str, int],
    *,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    items_per_epoch: int | None = None,
) -> dict[str, int]:
    """How many items of each configuration an epoch has.

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
    raw = (sizes / sizes.max()) ** (1 / temperature) if weights is None else [weights[name] for name in counts]
    shares = np.array(raw, dtype=np.float64)
    exact = shares / shares.sum() * (items_per_epoch or sizes.sum())
    quotas = np.floor(exact + 1e-9).astype(int)
    left = int(round(exact.sum())) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1  # to those that were cut most
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
        """The number of items of an epoch."""
        return sum(self.quotas.values())

    def item_at(self, position: int, further: int = 0) -> int:
        """The number of the item at a position of training, which runs on from epoch to epoch.

        Args:
            position: from 0.
            further: so many places behind it, from the epoch's end on to its beginning.
        """
        epoch, place = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.of_epoch(epoch)
        return int(self._order[(place + further) % len(self)])

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The items of an epoch in order, int32."""
        names = list(self.quotas)
        labels = np.repeat(np.arange(len(names), dtype=np.int16), list(self.quotas.values()))
        np.random.default_rng([self.seed, epoch]).shuffle(labels)
        order = np.empty(len(labels), dtype=np.int32)
        for label, name in enumerate(names):
            order[labels == label] = self._stretch(name, epoch)
        return order

    def _stretch(self, config: str, epoch: int) -> np.ndarray:
        """The items of a configuration that an epoch takes: a stretch of its endless passes."""
        quota, size = self.quotas[config], len(self.table.config_items(config))
        first = epoch * quota
        passes = range(first // size, -(-(first + quota) // size))
        items = np.concatenate([self._pass(config, number) for number in passes] or [np.empty(0, dtype=np.int32)])
        return items[first - passes.start * size :][:quota]

    def _pass(self, config: str, number: int) -> np.ndarray:
        """All items of a configuration, each once."""
        shards = self.table.config_shards[config]
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
