"""M3IT for LAVIS: each item is one image, or list of images, with the texts about it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

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
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.group import group_by_image
from gitllm_plugin.m3it.pictures import open_picture
from gitllm_plugin.m3it.problems import Problem, RowError
from gitllm_plugin.protocols import TextRule


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
        on_error: ``stop`` at what cannot be used, or ``skip`` it: an example that does not fit into the model's context
            is in no item then (:meth:`use_text_rule`). In the place of an item whose image is broken comes the next one
            in training; in evaluation it has no texts.
        trains: whether items are replaced.
    """

    def __init__(
        self,
        vis_processor: Callable,
        text_processor: Callable,
        examples: IndexedExamples,
        texts_per_image: int = 1,
        separate_configs: bool = False,
        on_error: OnError = "stop",
        trains: bool = False,
    ):
        self.set_processors(vis_processor, text_processor)
        self.examples = examples
        self.texts_per_image = texts_per_image
        self.separate_configs = separate_configs
        self.on_error: OnError = on_error
        self.trains = trains
        self.left_out: list[Problem] = []
        self._skipped = Skipped()
        self._group(range(len(examples)))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read an item and decode its image, once for all its texts.

        Raises:
            DataError: if the image is broken, and ``on_error`` is ``stop``.
        """
        for further in range(MAX_REPLACEMENTS):
            try:
                # Only further ones begin anew: iterating ends where an index is too large.
                return self._make((index + further) % len(self) if further else index)
            except RowError as error:
                if self.on_error == "stop":
                    raise
                self._skipped.note(error)
                if not self.trains:
                    return {"image": None, "image_mean": None, "image_std": None, "texts": []}
        raise too_many_error(self._skipped, MAX_REPLACEMENTS, "the files")

    @property
    def vis_root(self) -> str:
        """The folder of the first row's file, which LAVIS's dataset browser names."""
        return str(Path(self.examples.place_of(0).rpartition(":")[0]).parent)

    def displ_item(self, index: int) -> dict[str, Any]:
        """Give an item as people read it, for LAVIS's dataset browser: its texts, and ``image``, a picture or several.

        Raises:
            DataError: if the image is broken.
        """
        group = self.examples.read(self.groups[index])
        place = self.examples.place_of(self.groups[index][0])
        shown: dict[str, Any] = {"file": place}
        for number, text in enumerate(group.texts, 1):
            mark = f" {number}" if len(group.texts) > 1 else ""
            shown[f"instruction{mark}"] = text.instruction
            if text.turns:
                shown[f"before{mark}"] = " / ".join(f"{asked} {said}" for asked, said in text.turns)
            shown[f"question{mark}"] = text.question
            shown[f"answer{mark}"] = "; ".join(text.answers)
            if text.rejected is not None:
                shown[f"rejected{mark}"] = text.rejected
        pictures = [open_picture(image, place) for image in group.images] or [Image.new("RGB", (1, 1), "white")]
        return {**shown, "image": pictures if len(pictures) > 1 else pictures[0]}

    @property
    def num_examples(self) -> int:
        """The number of questions, those included that are skipped."""
        return len(self.examples)

    def count_skipped(self) -> dict[str, int]:
        """Count what is left out, by kind, and how often this rank could not read an item."""
        counts = Counter(problem.kind for problem in self.left_out) + Counter(self._skipped.by_kind())
        return dict(sorted(counts.items()))

    def fingerprint(self) -> str:
        """Sum up the rows, in their order, wherever their files are.

        Those that are left out are among them: which these are follows from rows and model, and is not known yet where
        a run to go on with is looked for.
        """
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

    def use_text_rule(self, rule_of: Callable[[Any], TextRule | None]) -> None:
        """Leave out examples that the model cannot read however short their questions, or refuse them.

        Only those are read, and their tokens counted, that are long enough for it.

        Raises:
            DataError: there are some, and ``on_error`` is ``stop``.
        """
        long = self.find_long_texts(rule_of)
        self.left_out = list(long.values())
        refuse_or_tell("M3IT", self.left_out, self.on_error)
        if long:
            self._group([index for index in range(len(self.examples)) if index not in long])
            if not self.groups:
                raise DataError("M3IT: the model can read no example; the warnings above name some")

    def find_long_texts(self, rule_of: Callable[[Any], TextRule | None]) -> dict[int, Problem]:
        """Find the examples that the model cannot read however short their questions, by number."""
        rule = rule_of(self._example_image())
        faults: dict[int, Problem] = {}
        if rule is None:
            return faults
        for index in self.examples.longer_than(rule.bytes_that_fit):
            group = self.examples[index]
            text = group.texts[0]
            if fault := find_fault(rule, self._items.prompt_of(text), text, len(group.images)):
                path, _, line = self.examples.place_of(index).rpartition(":")
                faults[index] = Problem(path, int(line), fault[0], f"example {text.id!r}: {fault[1]}")
        return faults

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

    def _group(self, kept: Sequence[int]) -> None:
        """Make the items of these examples."""
        # Images are told apart by their hashes, which are known since the files were scanned: nothing is read here.
        keys = [self.examples.image_key(index) for index in kept]
        if self.separate_configs:
            keys = [key and f"{self.examples.config_of(index)} {key}" for index, key in zip(kept, keys, strict=True)]
        self.groups = [[kept[place] for place in group] for group in group_by_image(keys, self.texts_per_image)]

    def _make(self, index: int) -> dict[str, Any]:
        members = self.groups[index]
        group = self.examples.read(members)
        return self._items.make(group, f"example {group.texts[0].id!r} at {self.examples.place_of(members[0])}")

    def _example_image(self) -> torch.Tensor | None:
        """Make one of the images; None where no example has any."""
        with_image = (index for index in range(len(self.examples)) if self.examples.image_key(index))
        return first_image(
            with_image,
            lambda index: self._items.example_image(self.examples[index].images[0], self.examples.place_of(index)),
        )
