"""M3IT for LAVIS: each item is one image, or list of images, with the texts about it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from gitllm_plugin.datasets.collate import collate_groups
from gitllm_plugin.datasets.items import ItemMaker
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.group import group_by_image


class M3ITDataset(Dataset):
    """One split.

    An item is ``{"image", "image_mean", "image_std", "texts"}``, as
    :func:`~gitllm_plugin.datasets.collate.collate_groups` takes it. The length is the number of items, not of examples.

    Args:
        vis_processor: see :class:`~gitllm_plugin.datasets.items.ItemMaker`.
        text_processor: likewise.
        examples: the examples of the split.
        texts_per_image: the most examples that share an item.
        separate_configs: let only examples of one configuration share an item. Answers of one configuration are
            alike in length, and generation runs as long as the longest answer of a batch.
    """

    def __init__(
        self,
        vis_processor: Callable,
        text_processor: Callable,
        examples: IndexedExamples,
        texts_per_image: int = 1,
        separate_configs: bool = False,
    ):
        self.set_processors(vis_processor, text_processor)
        self.examples = examples
        # Images are told apart by their hashes, which are known since the files were scanned: nothing is read here.
        keys = [examples.image_key(index) for index in range(len(examples))]
        if separate_configs:
            keys = [key and f"{examples.config_of(index)} {key}" for index, key in enumerate(keys)]
        self.groups = group_by_image(keys, texts_per_image)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read an item and decode its image, once for all its texts.

        Raises:
            DataError: if the image is broken.
        """
        members = self.groups[index]
        group = self.examples.read(members)
        return self._items.make(group, f"example {group.texts[0].id!r} at {self.examples.place_of(members[0])}")

    @property
    def num_examples(self) -> int:
        """The number of questions, each of which is in exactly one item."""
        return len(self.examples)

    def fingerprint(self) -> str:
        """Sum up the rows, in their order, wherever their files are."""
        return self.examples.fingerprint()

    def set_processors(self, vis_processor: Callable, text_processor: Callable) -> None:
        """Replace both processors."""
        self._items = ItemMaker(vis_processor, text_processor)

    @property
    def vis_processor(self) -> Callable:
        """What makes pixel values."""
        return self._items.vis_processor

    @property
    def text_processor(self) -> Callable:
        """What makes prompts."""
        return self._items.text_processor

    def collater(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch; see :func:`gitllm_plugin.datasets.collate.collate_groups`."""
        return collate_groups(items)

    def describe(self) -> dict[str, Any]:
        """Count for logs: items, examples, distinct images, and examples of each configuration."""
        keys = {self.examples.image_key(index) for index in range(len(self.examples))}
        configs = Counter(self.examples.config_of(index) for index in range(len(self.examples)))
        return {
            "items": len(self),
            "examples": self.num_examples,
            "images": len(keys - {""}),
            "configs": dict(sorted(configs.items())),
        }
