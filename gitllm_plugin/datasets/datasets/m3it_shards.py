"""M3IT from shards for LAVIS: a stream with the items of the map-style data set, whose place is one number.

Positions, not files, are dealt out. Position p of a split is p of its order: for evaluation that of the item table,
for training the endless one of :mod:`gitllm_plugin.m3it.shards.mixture`. With W ranks, batches of B items and N
workers, batch t of rank r holds the positions p0 + (t * B + i) * W + r, i < B, and is made by worker t modulo N, from
which torch's loader takes it in its turn. Hence:

- every position belongs to exactly one rank and worker, however many there are; evaluation sees each item once;
- the batches of a rank do not depend on the number of workers, and all ranks' batches t together are those of one
  process with W times the batch size;
- all that a resumed run needs to know is p0, how many items all ranks together have taken. Another number of
  workers, ranks or another batch size goes on with the very next item.

For that the stream must know the batch size. It may be told after it was built (``set_batch_size``), since LAVIS's
runners build loaders late.
"""

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map
from webdataset.pipeline import DataPipeline

from gitllm_plugin.datasets.collate import collate_groups
from gitllm_plugin.datasets.items import ItemMaker, first_image
from gitllm_plugin.datasets.skipping import (
    MAX_REPLACEMENTS,
    OnError,
    Skipped,
    find_fault,
    refuse_or_tell,
    too_many_error,
)
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.group import Group
from gitllm_plugin.m3it.problems import Problem, RowError
from gitllm_plugin.m3it.shards.features import FeatureReader
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.mixture import EpochOrder, Item, ItemTable, records_of
from gitllm_plugin.protocols import FingerprintedModel, TextRule, offers


class ShardItem(dict):
    """An item, of a type for which torch's own collate function, which LAVIS uses for streams, makes right batches."""


# LAVIS's loader of streams passes no collate function of the data set's.
default_collate_fn_map[ShardItem] = lambda items, collate_fn_map=None: collate_groups(items)


class M3ITShards(DataPipeline):
    """One split of a folder of shards; for training it has no end.

    An item is what :class:`~gitllm_plugin.datasets.datasets.m3it_dataset.M3ITDataset` has for the same data.

    Args:
        items: makes items of records.
        table: the items that there are.
        folder: where records are read.
        order: the order of training; None for evaluation, which takes each item once.
        on_error: ``stop`` at what cannot be read, or ``skip`` it: evaluation goes without, in training the next item of
            the epoch takes its place, so that batches stay what they are. What is skipped is counted
            (:meth:`count_skipped`) and warned of.
        batch_size: items of a batch of one rank.
        features: features of the images that were computed before, which then stand in their place.
    """

    def __init__(
        self,
        items: ItemMaker,
        table: ItemTable,
        folder: ShardFolder,
        order: EpochOrder | None = None,
        on_error: OnError = "stop",
        batch_size: int = 1,
        features: FeatureReader | None = None,
    ):
        super().__init__(self._positions, self._read)
        self.items = items
        self.table = table
        self.folder = folder
        self.order = order
        self.on_error: OnError = on_error
        self.batch_size = batch_size
        self.features = features
        self.shared = True
        self._taken = 0
        self._ranks: tuple[int, int] | None = None
        self._rule: TextRule | None = None
        self._skipped = Skipped()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ranks": self._rank_and_world()}  # a worker that is not forked has no process group

    def __len__(self) -> int:
        """Items of this rank: of one epoch in training, of the whole split in evaluation."""
        rank, world = self._rank_and_world()
        return len(range(rank, len(self.table), world)) if self.order is None else len(self.order) // world

    @property
    def endless(self) -> bool:
        """Whether it is for training."""
        return self.order is not None

    @property
    def num_examples(self) -> int:
        """The number of questions of all ranks together, without what an epoch repeats or leaves out."""
        return self.table.num_texts

    @property
    def vis_processor(self) -> Any:
        """What makes pixel values."""
        return self.items.vis_processor

    @property
    def text_processor(self) -> Any:
        """What makes prompts."""
        return self.items.text_processor

    def fingerprint(self) -> str:
        """Sum up the shards, by the hashes that the manifest has of them."""
        return f"{self.num_examples} texts in {len(self.table.shards)} shards {self._hash_of_shards()[:12]}"

    def collater(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch; see :func:`gitllm_plugin.datasets.collate.collate_groups`."""
        return collate_groups(items)

    def use_model(self, model: Any) -> None:
        """Let a stream that reads features read those of the model's image encoder.

        Args:
            model: before its weights are shared out among processes.

        Raises:
            ConfigError: the model takes no features, trains its image encoder, or is not what made them.
            DataError: some shards have no features of it.
        """
        # Weights that are shared out have no fingerprint, hence before.
        if self.features is not None:
            if not offers(model, FingerprintedModel):
                raise ConfigError("the data brings features of images, which this model does not take: give it pixels")
            self.features.choose(model.encoder_fingerprint())

    def use_text_rule(self, rule_of: Callable[[Any], TextRule | None]) -> None:
        """Compare texts with what the model can read: now where the manifest says that some may be too long.

        The shards of others that have such texts, made before their manifest noted it, or not on this machine, are
        looked at when they are read.

        Raises:
            DataError: some do not fit, and ``on_error`` is ``stop``.
        """
        self._rule = rule = rule_of(self._example_image())
        if rule is None or self.folder.is_remote:
            return
        problems = []
        for shard in self.table.shards:
            most = shard.most_images or 0
            if shard.text_bytes is None or shard.text_bytes <= rule.bytes_that_fit(most):
                continue
            for item in records_of(shard):
                with contextlib.suppress(RowError):  # broken, which is told when it is read
                    # Images are read only of what would not fit beside the most of them.
                    if any(self._long_texts(rule, self.folder.read_texts(item), item, most)):
                        group = self.folder.read(item)
                        found = self._long_texts(rule, group, item, len(group.images))
                        problems += [Problem("", 0, error.kind, str(error)) for _, error in found]
        refuse_or_tell(f"M3IT {self.table.split} from {self.folder.location}", problems, self.on_error)

    def describe(self) -> dict[str, Any]:
        """Count for logs: shards, records, items, examples, and of each configuration its items (of an epoch)."""
        sizes = {name: len(self.table.config_items(name)) for name in self.table.config_shards}
        return {
            "shards": len(self.table.shards),
            "records": self.table.num_records,
            "items": len(self.table),
            "examples": self.num_examples,
            "configs": sizes,
            **({} if self.order is None or self.order.quotas == sizes else {"per_epoch": self.order.quotas}),
        }

    # ------------------------------------------------------------------ the place in training

    def set_batch_size(self, batch_size: int) -> None:
        """Say how many items the loader takes for a batch; to be called before its workers start."""
        self.batch_size = batch_size

    def set_shared(self, shared: bool) -> None:
        """Say whether ranks share a split in evaluation, as they do unless told otherwise, or each reads all of it."""
        self.shared = shared

    def note_batch(self, batch: Mapping[str, Any]) -> None:
        """Count a batch that was trained on; every rank counts its own.

        Raises:
            DataError: if the batch is not of the size that the stream was told.
        """
        found = int(batch["image_index"][-1]) + 1
        if found != self.batch_size:
            raise DataError(
                f"a batch of {found} items, but the stream was told {self.batch_size}: call set_batch_size({found}) "
                "before the loader's iterator is made"
            )
        self._taken += self.batch_size * self._rank_and_world()[1]

    def state_dict(self) -> dict[str, Any]:
        """Say where training stands, the same on every rank: how many items all have taken, and of what order."""
        return {"items": self._taken, "order": self._describe_order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; to be called before a loader's iterator is made.

        With another number of workers or ranks, or another batch size, training goes on with the next item all the
        same. With other data, another mixture or seed there is no next item: training goes on at the same number in
        the new order, which is warned of.
        """
        self._taken = int(state["items"])
        before, now = state.get("order", {}), self._describe_order()
        changed = [key for key in now if before.get(key, now[key]) != now[key]]
        if changed:
            logging.warning(
                "The training data is ordered otherwise than before (%s changed): training goes on after %d items of "
                "the new order, so in this epoch some items come twice and others not at all.",
                ", ".join(changed),
                self._taken,
            )

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on as :meth:`load_state_dict` does, from the states of any number of ranks, which are all the same."""
        self.load_state_dict(states[0])

    def skip_batches(self, batches: int) -> None:
        """Go on as after so many batches from the start, for runners that keep no state of their data."""
        self._taken = batches * self.batch_size * self._rank_and_world()[1]

    def start_at(self, position: int) -> None:
        """Go on as after so many items of all ranks together."""
        self._taken = position

    def items_at(self, positions: Sequence[int]) -> list[ShardItem]:
        """Read the items of some positions of training, on any rank."""
        return [item for position in positions if (item := self._make_or_replace(position)) is not None]

    def _describe_order(self) -> dict[str, Any]:
        if self.order is None:
            return {}
        return {
            "seed": self.order.seed,
            "shuffle_shards": self.order.shuffle_shards,
            "texts_per_image": self.table.texts_per_image,
            "configs": dict(self.order.quotas),
            "shards": self._hash_of_shards(),
        }

    def _hash_of_shards(self) -> str:
        return hashlib.sha256("".join(shard.sha256 for shard in self.table.shards).encode()).hexdigest()

    # ------------------------------------------------------------------ reading

    def count_skipped(self) -> dict[str, int]:
        """Count how often this rank could not read an item, by kind; in evaluation of the last pass."""
        return self._skipped.by_kind()

    def _rank_and_world(self) -> tuple[int, int]:
        if not self.shared:
            return 0, 1
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return self._ranks or (0, 1)

    def _positions(self) -> Iterator[int]:
        """Deal out the positions of this rank and worker, whole batches at a time."""
        worker, workers = _worker_and_number()
        rank, world = self._rank_and_world()
        first, end = (0, len(self.table)) if self.order is None else (self._taken, None)
        # Whole batches, since torch's loader takes one from each worker in turn.
        for batch in itertools.count(worker, workers):
            start = first + batch * self.batch_size * world + rank
            for position in range(start, start + self.batch_size * world, world):
                if end is not None and position >= end:
                    return
                yield position

    def _read(self, positions: Iterable[int]) -> Iterator[ShardItem]:
        # An evaluation tells of itself; training adds up, since an epoch has no end here.
        if self.order is None:
            self._skipped.forget()
        for position in positions:
            item = self._make_or_replace(position)
            if item is not None:
                yield item
        if skipped := self._skipped.of_this_worker():
            worker, _ = _worker_and_number()
            logging.warning("Split %s: worker %d could not read items: %s", self.table.split, worker, skipped)

    def _make_or_replace(self, position: int) -> ShardItem | None:
        """Make the item of a position; if it cannot be read, the next of the epoch, or in evaluation none."""
        # The item behind a broken one comes twice then. To close the gap instead, every position after it would move,
        # and ranks that cannot see each other's errors would no longer agree on them.
        for further in range(MAX_REPLACEMENTS):
            number = position if self.order is None else self.order.item_at(position, further)
            try:
                return self._make(number, position)
            except RowError as error:
                if self.on_error == "stop":
                    raise
                self._skipped.note(error)
                if self.order is None:
                    return None
        raise too_many_error(self._skipped, MAX_REPLACEMENTS, "the shards")

    def _make(self, number: int, position: int) -> ShardItem:
        item = self.table[number]
        group = self.folder.read(item) if self.features is None else self.folder.read_texts(item)
        group = self._fitting(replace(group, texts=group.texts[item.texts]), item)
        place = f"example {group.texts[0].id!r} in {item.shard.file}"
        # The position seeds crops and flips: they are the same after resuming, on whichever rank and worker.
        seed = position if self.order is None else (self.order.seed * 1_000_003 + position) % 2**32
        if self.features is None:
            return ShardItem(self.items.make(group, place, seed))
        made = self.items.make(group, place, features=self._features_of(item))
        return ShardItem({**made, "image_encoder": self.features.image_encoder})

    def _fitting(self, group: Group, item: Item) -> Group:
        """Leave out texts that do not fit into the model's context.

        Raises:
            RowError: none is left, or ``on_error`` is ``stop``.
        """
        if self._rule is None:
            return group
        # Read without its images where there are features of them.
        images = len(group.images) if self.features is None else self.features.count_images(item)
        errors = dict(self._long_texts(self._rule, group, item, images))
        if not errors:
            return group
        first, *others = errors.values()
        if self.on_error == "stop" or len(errors) == len(group.texts):
            for error in others if self.on_error == "skip" else ():
                self._skipped.note(error)
            raise first
        for error in errors.values():
            self._skipped.note(error)
        return replace(group, texts=tuple(text for n, text in enumerate(group.texts) if n not in errors))

    def _long_texts(self, rule: TextRule, group: Group, item: Item, images: int) -> Iterator[tuple[int, RowError]]:
        for number, text in enumerate(group.texts):
            if fault := find_fault(rule, self.items.prompt_of(text), text, images):
                yield number, RowError(*fault, f"{item.shard.file}, record {item.record}, text {text.id!r}")

    def _example_image(self) -> torch.Tensor | None:
        """Make one of the images, or of what stands in their place; None where no record has any."""

        def make(item: Item) -> torch.Tensor | None:
            if self.features is not None:
                features = self._features_of(item)
                return features[:1] if len(features) else None
            images = self.folder.read(item).images
            return self.items.example_image(images[0], item.shard.file) if images else None

        return first_image((item for shard in self.table.shards if shard.images for item in records_of(shard)), make)

    def _features_of(self, item: Item) -> torch.Tensor:
        assert self.features is not None
        return torch.from_numpy(self.features.read(item).view(np.int16)).view(torch.bfloat16)


def _worker_and_number() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
