"""M3IT for LAVIS: each item is one image, or list of images, with the texts about it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from gitllm_plugin.datasets.collate import collate_groups
from gitllm_plugin.m3it.example import Example
from gitllm_plugin.m3it.grouping import group_by_image
from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.m3it.jsonl import JsonlExamples


class M3ITDataset(Dataset):
    """One split.

    An item is ``{"image", "texts"}``, as :func:`~gitllm_plugin.datasets.collate.collate_groups`
    takes it. The length is the number of items, not of examples.

    Args:
        vis_processor: PIL image -> float [3, H, W], H and W always the same.
        text_processor: (question, instruction) -> prompt.
        examples: the examples of the split.
        texts_per_image: the most examples that share an item.
        separate_configs: let only examples of one configuration share an item. Answers of one configuration are
            alike in length, and generation runs as long as the longest answer of a batch.
    """

    def __init__(
        self,
        vis_processor: Callable[[Image], Tensor],
        text_processor: Callable[..., str],
        examples: JsonlExamples,
        texts_per_image: int = 1,
        separate_configs: bool = False,
    ):
        self.set_processors(vis_processor, text_processor)
        self.examples = examples
        keys = [examples.image_key(index) for index in range(len(examples))]
        if separate_configs:
            keys = [key and f"{examples.config_of(index)} {key}" for index, key in enumerate(keys)]
        self.groups = group_by_image(keys, texts_per_image)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads the examples of an item and decodes their image.

        Raises:
            DataError: if the image is broken.
        """
        examples = [self.examples[member] for member in self.groups[index]]
        return {
            "image": self._load_images(examples[0]),
            "texts": [self._make_text(example) for example in examples],
        }

    @property
    def num_examples(self) -> int:
        """The number of questions, each of which is in exactly one item."""
        return len(self.examples)

    def set_processors(self, vis_processor: Callable, text_processor: Callable) -> None:
        """Replaces both processors."""
        self.vis_processor = vis_processor
        self.text_processor = text_processor

    def collater(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch; see :func:`gitllm_plugin.datasets.collate.collate_groups`."""
        return collate_groups(items)

    def describe(self) -> dict[str, Any]:
        """Numbers for logs: items, examples, distinct images, and examples of each configuration."""
        keys = {self.examples.image_key(index) for index in range(len(self.examples))}
        configs = Counter(self.examples.config_of(index) for index in range(len(self.examples)))
        return {
            "items": len(self),
            "examples": self.num_examples,
            "images": len(keys - {""}),
            "configs": dict(sorted(configs.items())),
        }

    def _load_images(self, example: Example) -> Tensor | None:
        place = f"example {example.id!r} at {example.location}"
        images = [self.vis_processor(decode_image(image, place)) for image in example.images]
        if not images:
            return None
        return images[0] if len(images) == 1 else torch.stack(images)

    def _make_text(self, example: Example) -> dict[str, Any]:
        return {
            "text_input": self.text_processor(example.question, example.instruction),
            "text_output": example.answers[0],
            "instance_id": example.id,
            "config": example.config,
            "references": list(example.answers),
            "question": example.question,
        }
