"""Which items a set of shards holds, known from the manifest alone.

An item is a record, or a part of one: up to so many of its texts, with its images. Items have numbers, by
configuration, shard, record and text. Arrays hold what is known of them: 6 bytes an item and 20 a record.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gitllm_plugin.errors import DataError
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
            part = manifest.configs[config].get(split)
            if part is not None and part.groups:
                first = len(self.shards)
                self.shards += part.shards
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
        """The items of a configuration."""
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
        blocks = [_numbers(shard.record_blocks) for shard in self.shards]
        parts = [-(-_numbers(shard.record_texts) // self.texts_per_image) for shard in self.shards]  # rounded up
        self._size = np.concatenate(blocks) * TAR_BLOCK
        self._offset = np.concatenate([np.cumsum(sizes) - sizes for sizes in blocks]) * TAR_BLOCK
        self._shard_records = _starts([len(sizes) for sizes in blocks])
        self.shard_items = _starts([int(counts.sum()) for counts in parts])
        counts = np.concatenate(parts)
        self._record_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        within = np.arange(len(self._record_of)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._first_text = (within * self.texts_per_image).astype(np.int32)


def records_of(shard: Shard) -> Iterator[Item]:
    """Every record of a shard as one item with all its texts, in order."""
    sizes = _numbers(shard.record_blocks) * TAR_BLOCK
    for record, (size, end) in enumerate(zip(sizes.tolist(), np.cumsum(sizes).tolist(), strict=True)):
        yield Item(shard, record, end - size, size, slice(None))


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.int64)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])
