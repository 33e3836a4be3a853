"""The batches of a training, from map-style and streaming data sets and mixtures of both."""

import logging
from collections.abc import Iterator, Mapping, Sequence, Sized
from fractions import Fraction
from typing import Any, Protocol

from torch.utils.data import ChainDataset, Dataset, IterableDataset

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import end_workers
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.protocols import CountingStream, RescalableStream, ResumableStream, offers
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loaders import EpochSampler, LoaderSettings, SeededItems, check_has_batches, collate_of
from gitllm_plugin.runners.token_batches import TokenBudget, TokenData


class TrainingData(Protocol):
    """Batches in an order that the position in the run determines.

    Attributes:
        streaming: whether it is read on through all epochs.
    """

    streaming: bool

    @property
    def batches_per_epoch(self) -> int | None:
        """This rank's, None where the data has no epochs."""
        ...

    def batches(self, position: Position) -> Iterator[dict[str, Any]]:
        """Give the batches from a position on: to the epoch's end, or without end."""
        ...

    def note(self, batch: dict[str, Any]) -> None:
        """Learn that a batch is trained on now; those that were read ahead are not."""
        ...

    def state_dict(self) -> Any:
        """Give this rank's place in the data, behind the last noted batch; None where the position says it."""
        ...

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Go on where the ranks' states say."""
        ...

    def close(self) -> None:
        """End the worker processes, also while the traceback of an exception holds the iterator of batches."""
        ...


class MapData:
    """A map-style data set, shuffled anew in each epoch."""

    streaming = False

    def __init__(self, dataset: Dataset, settings: LoaderSettings, seed: int):
        self.dataset = SeededItems(dataset, seed)
        self.sampler = EpochSampler(dataset, seed)
        # The wrapper is no data set of anybody's class: what makes batches has to be asked of the one inside.
        collate = collate_of(dataset)
        self.loader = settings.loader(self.dataset, sampler=self.sampler, collate_fn=collate, drop_last=True)
        check_has_batches(self.loader, "train")
        self._iterator: Iterator[dict[str, Any]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """As many as the data set fills, the last one left out where it is smaller."""
        return len(self.loader)

    def batches(self, position: Position) -> Iterator[dict[str, Any]]:
        """Give the rest of the position's epoch."""
        # Before the iterator is made: worker processes get a copy of data set and sampler as they are then.
        self.dataset.epoch = position.epoch
        self.sampler.set_position(position.epoch, position.epoch_iter * (self.loader.batch_size or 1))
        self._iterator = iter(self.loader)
        return self._iterator

    def note(self, batch: dict[str, Any]) -> None:
        """Do nothing: the position says it all."""

    def state_dict(self) -> None:
        """Give None: the position says it all."""

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Do nothing: the position says it all."""

    def close(self) -> None:
        """End the worker processes."""
        end_workers([self._iterator])
        self._iterator = None


class StreamData:
    """A streaming data set (``IterableDataset``, such as a webdataset pipeline), read on through all epochs.

    Where it goes on after an interruption is its own affair: see
    :class:`~gitllm_plugin.protocols.ResumableStream` and :class:`~gitllm_plugin.protocols.CountingStream`.
    """

    streaming = True

    def __init__(self, dataset: IterableDataset, settings: LoaderSettings):
        self.dataset: Any = dataset
        self.batch_size = settings.batch_size
        self.loader = settings.loader(dataset, drop_last=True)
        self._iterator: Iterator[dict[str, Any]] | None = None

    @property
    def batches_per_epoch(self) -> int | None:
        """As many as the items that the stream says it has on this rank fill; None where it says nothing."""
        return len(self.dataset) // self.batch_size if isinstance(self.dataset, Sized) else None

    def batches(self, position: Position) -> Iterator[dict[str, Any]]:
        """Give the batches that follow those given before."""
        # One iterator for all epochs: a new one would begin the stream again, and start workers anew.
        if self._iterator is None:
            self._iterator = iter(self.loader)
        return self._iterator

    def note(self, batch: dict[str, Any]) -> None:
        """Tell the data set, if it wants to know."""
        if offers(self.dataset, CountingStream):
            self.dataset.note_batch(batch)

    def state_dict(self) -> Any:
        """Give the data set's own, None where it has no place."""
        return self.dataset.state_dict() if offers(self.dataset, ResumableStream) else None

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Give each rank its own state, or all of them to all ranks where their number has changed."""
        state = states[ranks.rank()] if len(states) == ranks.world_size() else None
        if state is not None and offers(self.dataset, ResumableStream):
            self.dataset.load_state_dict(state)
        elif states and len(states) != ranks.world_size() and offers(self.dataset, RescalableStream):
            self.dataset.load_state_dicts(states)
        else:
            logging.warning(
                "The training stream %s starts from its beginning: it has no saved place for %d ranks.",
                type(self.dataset).__name__,
                ranks.world_size(),
            )

    def close(self) -> None:
        """End the worker processes."""
        end_workers([self._iterator])
        self._iterator = None


class Mixture:
    """Several data sets, of which each batch is drawn from one, in turns that keep their shares.

    Which one is next follows from how many batches each has given, see :func:`next_in_turn`: all ranks draw the same,
    and a resumed run draws on.

    Args:
        members: by name.
        weights: by name; any positive numbers.
    """

    streaming = True

    def __init__(self, members: Mapping[str, TrainingData], weights: Mapping[str, float]):
        self.members = dict(members)
        # As they are written in decimals: 0.1 and 0.3 are one to three.
        exact = {name: Fraction(str(weights[name])) for name in self.members}
        self.shares = {name: weight / sum(exact.values()) for name, weight in exact.items()}
        self.num_read = dict.fromkeys(self.members, 0)
        self.num_noted = dict.fromkeys(self.members, 0)
        self._names: list[str] = []
        self._iterators: dict[str, Iterator[dict[str, Any]]] = {}

    @property
    def batches_per_epoch(self) -> int | None:
        """As many as all members have together, however they are shared; None where one has no end."""
        counts = [member.batches_per_epoch for member in self.members.values()]
        return None if None in counts else sum(count for count in counts if count)

    def batches(self, position: Position) -> Iterator[dict[str, Any]]:
        """Give batches without end, as far as the streams among the members have none."""
        while True:
            name = next_in_turn(self.shares, self.num_read)
            batch = self._next_of(name)
            if batch is None:
                return
            # Batches are read ahead of training: those between are remembered until they are noted.
            self._names.append(name)
            yield batch

    def note(self, batch: dict[str, Any]) -> None:
        """Count the batch for the member that it is from."""
        name = self._names.pop(0)
        self.num_noted[name] += 1
        self.members[name].note(batch)

    def state_dict(self) -> dict[str, Any]:
        """Give how many batches of each member were trained on, and the members' own states."""
        states = {name: member.state_dict() for name, member in self.members.items()}
        return {"num_batches": dict(self.num_noted), "parts": states}

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Go on behind the batches that were trained on.

        Raises:
            ConfigError: the checkpoint is of a mixture with other members.
        """
        if not states or states[0] is None:
            logging.warning("The mixture of data sets starts from its beginning: the checkpoint has no place in it.")
            return
        counts = states[0]["num_batches"]
        if set(counts) != set(self.members):
            raise ConfigError(
                f"The checkpoint was trained on the data sets {', '.join(sorted(counts))}, and this run has "
                f"{', '.join(sorted(self.members))}: start a new run from its weights, as model.finetuned"
            )
        self.num_read, self.num_noted = dict(counts), dict(counts)
        for name, member in self.members.items():
            member.load_state_dicts([state["parts"][name] for state in states])

    def close(self) -> None:
        """End the worker processes of all members."""
        self._iterators.clear()
        for member in self.members.values():
            member.close()

    def _next_of(self, name: str) -> dict[str, Any] | None:
        """Read the member's next batch; None where a stream has ended. A map-style member begins its next epoch."""
        member = self.members[name]
        # A member's iterator is made when it is first drawn, so that no workers wait for one of small weight.
        batch = next(self._iterators[name], None) if name in self._iterators else None
        if batch is None and not (member.streaming and name in self._iterators):
            epoch, epoch_iter = (
                (0, 0) if member.streaming else divmod(self.num_read[name], member.batches_per_epoch or 1)
            )
            self._iterators[name] = member.batches(Position(epoch=epoch, epoch_iter=epoch_iter))
            batch = next(self._iterators[name], None)
        self.num_read[name] += batch is not None
        return batch


def next_in_turn(shares: Mapping[str, Fraction], counts: Mapping[str, int]) -> str:
    """Choose what is drawn next, so that all that was drawn keeps the shares to within one, at any time.

    This is Balinski and Young's quota method (1975): of those that the next draw does not take above their quota,
    the one whose share is largest for its number of draws.

    Args:
        shares: by name, positive, of sum 1.
        counts: how often each was drawn.
    """
    drawn = sum(counts.values()) + 1
    due = [name for name, share in shares.items() if counts[name] < share * drawn]
    return max(due, key=lambda name: shares[name] / (counts[name] + 1))


def training_data(
    datasets: Mapping[str, Mapping[str, Any]],
    splits: Sequence[str],
    ratios: Mapping[str, float] | None,
    settings: LoaderSettings,
    seed: int,
    budget: TokenBudget | None = None,
) -> TrainingData:
    """Make one of the training splits of all data sets.

    Args:
        datasets: by name, then by split.
        splits: ``run.train_splits``.
        ratios: ``run.train_dataset_ratios``: weights by name. None: map-style data sets count as one, by their sizes,
            and streams are drawn from as often as each other and as it.
        settings: how batches are made.
        seed: of the order.
        budget: how many tokens a batch has, in the place of a number of items; None: the number of ``settings``.

    Raises:
        ConfigError: names in ``ratios`` are not those of the data sets, or nothing is there to train on.
        DataError: a data set is empty.
    """
    found = {}
    for name, by_split in datasets.items():
        for split in splits:
            if split in by_split:
                found[name if len(splits) == 1 else f"{name}.{split}"] = by_split[split]
    for name, dataset in found.items():
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            raise DataError(f"The training data {name} has no examples; check its build_info.annotations")
    if not found:
        known = sorted({split for by_split in datasets.values() for split in by_split})
        raise ConfigError(f"run.train_splits is {list(splits)}, but the data sets have: {', '.join(known) or 'none'}")
    weights = None if ratios is None else _weights(ratios, found)
    if ratios is None:
        found = _concatenated(found)
    members = {name: _member(dataset, settings, seed, budget) for name, dataset in found.items()}
    if len(members) == 1:
        return next(iter(members.values()))
    maps = [name for name, dataset in found.items() if not isinstance(dataset, IterableDataset)]
    return Mixture(members, weights or _weights_of_all(members, maps))


def _weights_of_all(members: Mapping[str, TrainingData], maps: Sequence[str]) -> dict[str, float]:
    """Give all map-style members together the weight of one stream, and each its part of it by its batches."""
    sizes = {name: members[name].batches_per_epoch or 0 for name in maps}
    return {name: float(sizes.get(name, sum(sizes.values()) or 1)) for name in members}


def _member(dataset: Any, settings: LoaderSettings, seed: int, budget: TokenBudget | None) -> TrainingData:
    # LAVIS chains even a single stream, which hides its methods.
    if isinstance(dataset, ChainDataset) and len(streams := list(dataset.datasets)) == 1:
        dataset = streams[0]
    if budget is not None:
        return TokenData(dataset, settings, seed, budget)
    return StreamData(dataset, settings) if isinstance(dataset, IterableDataset) else MapData(dataset, settings, seed)


def _concatenated(found: Mapping[str, Any]) -> dict[str, Any]:
    """Make one of map-style data sets of one class, by LAVIS's concatenation, which has a ``collater``.

    The concatenation makes batches as its first member does, of what the items of all have: of a caption and a row of
    M3IT that is the picture alone. Those of other classes stay apart, as streams do.
    """
    from lavis.datasets.datasets.base_dataset import ConcatDataset

    alike: dict[type, dict[str, Any]] = {}
    streams = {name: dataset for name, dataset in found.items() if isinstance(dataset, IterableDataset)}
    for name, dataset in found.items():
        if name not in streams:
            alike.setdefault(type(dataset), {})[name] = dataset
    joined = {
        "+".join(members): ConcatDataset(list(members.values())) if len(members) > 1 else next(iter(members.values()))
        for members in alike.values()
    }
    return {**joined, **streams}


def _weights(ratios: Mapping[str, float], found: Mapping[str, Any]) -> dict[str, float]:
    if set(ratios) != set(found):
        raise ConfigError(
            f"run.train_dataset_ratios names {', '.join(map(str, ratios))}, but the data sets with a split 'train' are "
            f"{', '.join(found)}: give each a number"
        )
    weights = {name: float(value) for name, value in ratios.items()}
    if any(value <= 0 for value in weights.values()):
        raise ConfigError(f"run.train_dataset_ratios is {weights}; every number must be above 0")
    return weights
