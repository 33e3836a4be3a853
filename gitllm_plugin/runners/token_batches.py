"""Batches of nearly equal numbers of tokens, in the place of equal numbers of items: ``run.tokens_per_batch``.

Items have positions in one endless order: of a map-style data set its shuffles, one after another, of a stream its own.
Rank r of W reads r, r + W, r + 2 W, ... and holds some of them ready, whose tokens are counted. A batch begins with the
item that waits longest; others follow in their order, and what is left of the budget is filled by those that together
fit best. So a batch depends on the seed and its place alone, every item comes once in a pass, and the batches of all
ranks are of one size as nearly as items can be put together.

How many batches a pass has is not known before it is made: it is estimated, from the same few items on every rank.
Passes follow each other without a gap, wherever an epoch ends.

A checkpoint has the number of items that a rank has read, and the positions of those that it held. They are read again.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from gitllm_plugin.common import ranks
from gitllm_plugin.common.loading import end_workers
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.protocols import NumberedStream, ResumableStream, offers
from gitllm_plugin.runners.length import Position
from gitllm_plugin.runners.loaders import LoaderSettings, collate_of, seed_everything

_AHEAD = 3  # budgets of tokens that are held ready: enough to choose from
_SAMPLE = 128  # items that the length of a pass is estimated from
_READ = 4  # items that a worker process gives at once
_LAST = 3  # so many of the largest items have room where the last ones of a batch are chosen


@dataclass(frozen=True)
class TokenBudget:
    """How large batches are.

    Attributes:
        tokens: of a batch of one rank, at most; an item with more is a batch of its own.
        count: counts the tokens of a batch that a model reads.
    """

    tokens: int
    count: Callable[[dict[str, Any]], int]


class _Source(Protocol):
    """Items in an endless order, or one that ends."""

    num_items: int | None
    """Of one pass; None where it is not known."""

    def items_at(self, positions: Sequence[int]) -> list[Any]:
        """Read some, by their positions."""
        ...

    def items_from(self, position: int) -> Iterator[Any]:
        """Give this rank's: those at ``position``, ``position`` + ranks, ... ."""
        ...

    def state_dict(self, position: int) -> Any:
        """Give what is to be kept beside positions."""
        ...

    def load_state_dict(self, state: Any) -> bool:
        """Compare with what was kept; whether positions are those of then."""
        ...

    def close(self) -> None:
        """End the worker processes."""
        ...


class EndlessItems(Dataset):
    """A map-style data set as one endless order, shuffled anew for every pass; random numbers depend on the place."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset: Any = dataset
        self.seed = seed
        self._pass, self._order = -1, []

    def __getitem__(self, position: int) -> Any:
        """Give the item at a position."""
        number, place = divmod(position, len(self.dataset))
        if number != self._pass:
            generator = torch.Generator().manual_seed(self.seed + number)
            self._pass, self._order = number, torch.randperm(len(self.dataset), generator=generator).tolist()
        index = self._order[place]
        seed_everything(self.seed, number, index)
        return self.dataset[index]


class _MapSource:
    def __init__(self, dataset: Any, settings: LoaderSettings, seed: int):
        self.num_items: int | None = len(dataset)
        self._items = EndlessItems(dataset, seed)
        self._settings = settings
        self._iterator: Any = None

    def items_at(self, positions: Sequence[int]) -> list[Any]:
        return [self._items[position] for position in positions]

    def items_from(self, position: int) -> Iterator[Any]:
        sampler = itertools.count(position, ranks.world_size())
        loader = _loader(self._items, self._settings, sampler=sampler)
        self._iterator = iter(loader)
        return _each(self._iterator, self._settings)

    def state_dict(self, position: int) -> Any:
        return {"num_items": self.num_items}

    def load_state_dict(self, state: Any) -> bool:
        return isinstance(state, dict) and state.get("num_items") == self.num_items

    def close(self) -> None:
        end_workers([self._iterator])
        self._iterator = None


class _StreamSource:
    def __init__(self, stream: Any, settings: LoaderSettings):
        self.stream = stream
        self.has_positions = offers(stream, NumberedStream)
        if offers(stream, ResumableStream) and not self.has_positions:
            raise ConfigError(
                f"run.tokens_per_batch needs items that can be read again, which the stream {type(stream).__name__} "
                "does not offer (NumberedStream of gitllm_plugin.protocols); use run.batch_size_train"
            )
        size: Any = stream
        self.num_items: int | None = len(size) * ranks.world_size() if self.has_positions else None
        self._settings = settings
        self._iterator: Any = None

    def items_at(self, positions: Sequence[int]) -> list[Any]:
        return self.stream.items_at(positions) if positions else []

    def items_from(self, position: int) -> Iterator[Any]:
        if self.has_positions:
            self.stream.start_at(position - ranks.rank())
        self._iterator = iter(_loader(self.stream, self._settings))
        return _each(self._iterator, self._settings)

    def state_dict(self, position: int) -> Any:
        if not self.has_positions:
            return None
        self.stream.start_at(position - ranks.rank())
        return self.stream.state_dict()

    def load_state_dict(self, state: Any) -> bool:
        if not self.has_positions or state is None:
            return False
        self.stream.load_state_dict(state)  # it warns where its order is another
        return True

    def close(self) -> None:
        end_workers([self._iterator])
        self._iterator = None


def _loader(dataset: Any, settings: LoaderSettings, **arguments: Any) -> Any:
    return LoaderSettings(_READ, settings.num_workers).loader(dataset, collate_fn=list, **arguments)


def _each(batches: Iterator[list[Any]], settings: LoaderSettings) -> Iterator[Any]:
    """Give the items of a loader one by one."""
    for item in itertools.chain.from_iterable(batches):
        # Workers hand each tensor over in an open file, of which there may be only so many: none of them is held.
        yield _copied(item) if settings.num_workers else item


@dataclass(frozen=True)
class _Held:
    position: int
    item: Any
    tokens: int


@dataclass(frozen=True)
class _Place:
    """Behind a batch: the position of this rank's next item, and those of the items that are held."""

    next: int
    held: tuple[int, ...]


class TokenData:
    """Training batches of nearly equal numbers of tokens, read on through all epochs.

    Args:
        dataset: map-style, or a stream.
        settings: how items are read; the size of batches in it counts for nothing.
        seed: of the order of a map-style data set.
        budget: how large batches are.
    """

    streaming = True

    def __init__(self, dataset: Any, settings: LoaderSettings, seed: int, budget: TokenBudget):
        is_map = not isinstance(dataset, torch.utils.data.IterableDataset)
        self._source: Any = _MapSource(dataset, settings, seed) if is_map else _StreamSource(dataset, settings)
        self._budget = budget
        self._collate = collate_of(dataset) or default_collate
        self._pin = settings.pin_memory
        self._place = _Place(ranks.rank(), ())
        self._made: deque[_Place] = deque()
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._batches_per_pass: int | None = None

    @property
    def batches_per_epoch(self) -> int | None:
        """As many as a pass has, by the tokens of some of its items; None where it is not known how many it has."""
        if self._batches_per_pass is None and self._source.num_items:
            sample = self._source.items_at(range(min(_SAMPLE, self._source.num_items)))
            tokens = sum(map(self._count, sample)) / len(sample)
            self._batches_per_pass = max(
                1, round(tokens * self._source.num_items / (self._budget.tokens * ranks.world_size()))
            )
            logging.info(
                "About %.0f tokens an item, by the first %d: %d batches of %d tokens are taken for an epoch.",
                tokens,
                len(sample),
                self._batches_per_pass,
                self._budget.tokens,
            )
        return self._batches_per_pass

    def batches(self, position: Position) -> Iterator[dict[str, Any]]:
        """Give the batches that follow those given before."""
        if self._iterator is None:
            self._iterator = self._make()
        return self._iterator

    def note(self, batch: dict[str, Any]) -> None:
        """Learn that the next of the batches given is trained on."""
        self._place = self._made.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Give this rank's place behind the last noted batch."""
        return {
            "next": self._place.next,
            "held": list(self._place.held),
            "source": self._source.state_dict(self._place.next),
        }

    def load_state_dicts(self, states: Sequence[Any]) -> None:
        """Go on behind the last noted batches of the ranks that there were, whatever their number."""
        state = states[0] if states else None
        if not isinstance(state, dict) or "held" not in state or not self._source.load_state_dict(state["source"]):
            logging.warning(
                "The training data starts from its beginning: the checkpoint has no place in these batches."
            )
            return
        if len(states) == ranks.world_size():
            mine = states[ranks.rank()]
            self._place = _Place(mine["next"], tuple(mine["held"]))
        else:
            self._place = _place_of_other_ranks(states)

    def close(self) -> None:
        """End the worker processes."""
        self._source.close()
        self._iterator = None

    def _count(self, item: Any) -> int:
        return self._budget.count(self._collate([item]))

    def _make(self) -> Iterator[dict[str, Any]]:
        """Make batches, from the noted place on."""
        self._made.clear()
        following, stride = self._place.next, ranks.world_size()
        again = self._source.items_at(self._place.held)
        held = [_Held(p, item, self._count(item)) for p, item in zip(self._place.held, again, strict=True)]
        unread = self._source.items_from(following)
        while True:
            while sum(one.tokens for one in held) < _AHEAD * self._budget.tokens:
                item = next(unread, None)
                if item is None:
                    break
                held.append(_Held(following, item, self._count(item)))
                following += stride
            if not held:
                return
            chosen = fill([one.tokens for one in held], self._budget.tokens)
            taken = [held[number] for number in chosen]
            held = [one for number, one in enumerate(held) if number not in set(chosen)]
            self._made.append(_Place(following, tuple(one.position for one in held)))
            batch = self._collate([one.item for one in taken])
            yield _pinned(batch) if self._pin else batch


def fill(tokens: Sequence[int], budget: int) -> list[int]:
    """Choose which items make a batch.

    Args:
        tokens: of each item, in the order in which they came.
        budget: most tokens of the batch.

    Returns:
        Numbers of items, the first of them 0; it alone where it is larger than the budget.
    """
    chosen, room = [0], budget - tokens[0]
    rest = list(range(1, len(tokens)))
    last = _LAST * max(tokens[1:], default=0)
    # In their order, as long as there is room for several that are put together.
    while rest and room - tokens[rest[0]] >= last:
        room -= tokens[rest[0]]
        chosen.append(rest.pop(0))
    return chosen + _fullest(rest, tokens, max(room, 0))


def _fullest(numbers: Sequence[int], tokens: Sequence[int], room: int) -> list[int]:
    """Choose those of the numbers whose tokens together are nearest to ``room`` and not above it; else the first."""
    # Bit n of the k-th integer: whether some of the first k have n tokens together.
    reachable, within = [1], (1 << (room + 1)) - 1
    for number in numbers:
        reachable.append(reachable[-1] | (reachable[-1] << tokens[number] & within))
    total = reachable[-1].bit_length() - 1
    chosen: list[int] = []
    for number, without in zip(reversed(numbers), reversed(reachable[:-1]), strict=True):
        if not without >> total & 1:
            chosen.append(number)
            total -= tokens[number]
    return chosen[::-1]


def _place_of_other_ranks(states: Sequence[dict[str, Any]]) -> _Place:
    """Share out what other ranks had read and not trained on, or not read, and go on behind it."""
    world, before = ranks.world_size(), len(states)
    end = -(-max(state["next"] for state in states) // world) * world
    left = {position for state in states for position in state["held"]}
    left |= {position for state in states for position in range(state["next"], end, before)}
    return _Place(end + ranks.rank(), tuple(sorted(left)[ranks.rank() :: world]))


def _copied(item: Any) -> Any:
    if isinstance(item, dict):
        return type(item)({key: value.clone() if isinstance(value, Tensor) else value for key, value in item.items()})
    return item


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in batch.items()}
