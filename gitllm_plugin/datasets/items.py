"""From the images and texts of M3IT to an item of a data set, the same whichever file they come from."""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.processors.picture_processor import PictureProcessor


class Text(Protocol):
    """One question about an item's images, with its answers."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def config(self) -> str: ...  # noqa: D102
    @property
    def instruction(self) -> str: ...  # noqa: D102
    @property
    def question(self) -> str: ...  # noqa: D102
    @property
    def answers(self) -> Sequence[str]: ...  # noqa: D102


class ItemMaker:
    """Makes the items that :func:`~gitllm_plugin.datasets.collate.collate_groups` takes.

    Args:
        vis_processor: one of this package's, which loads encoded images itself, or any function from a PIL image to
            float [3, H, W], such as LAVIS's own. H and W are always the same.
        text_processor: (question, instruction) -> prompt. A function of one text, such as LAVIS's own processors,
            gets instruction and question as one.
    """

    def __init__(self, vis_processor: Callable, text_processor: Callable):
        self.vis_processor = vis_processor
        self.text_processor = text_processor
        own = isinstance(vis_processor, PictureProcessor)
        self._mean = torch.tensor(vis_processor.transform.mean) if own else None
        self._std = torch.tensor(vis_processor.transform.std) if own else None
        self._takes_two = len(inspect.signature(text_processor).parameters) > 1

    def make(
        self,
        images: Sequence[bytes],
        texts: Sequence[Text],
        place: str,
        seed: int | None = None,
        features: Tensor | None = None,
    ) -> dict:
        """Makes an item.

        Args:
            images: encoded image files that all texts are about; may be none.
            texts: what is asked about them.
            place: where they come from, for messages.
            seed: of what the processor does at random; None: drawn from the process's generators.
            features: bfloat16 [images, P, D], what an encoder made of the images before; they are not decoded then.

        Raises:
            DataError: if an image is broken.
        """
        if features is not None and len(features):
            image = features[:, None] if len(features) > 1 else features  # as images of one channel
        else:
            image = self._load(images, place, seed) if images else None
        return {
            "image": image,
            "image_mean": self._mean,
            "image_std": self._std,
            "texts": [self._make_text(text) for text in texts],
        }

    def _load(self, images: Sequence[bytes], place: str, seed: int | None) -> Tensor:
        if isinstance(self.vis_processor, PictureProcessor):
            return self.vis_processor.load(images, place, seed)
        with _drawing_from(seed):
            pixels = [self.vis_processor(decode_image(image, place)) for image in images]
        return pixels[0] if len(pixels) == 1 else torch.stack(pixels)

    def _make_text(self, text: Text) -> dict[str, Any]:
        question, instruction = text.question, text.instruction
        if self._takes_two:
            prompt = self.text_processor(question, instruction)
        else:
            prompt = self.text_processor(" ".join(part for part in (instruction, question) if part))
        return {
            "text_input": prompt,
            "text_output": text.answers[0],
            "instance_id": text.id,
            "config": text.config,
            "references": list(text.answers),
            "question": question,
        }


@contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    """Seeds the generators that processors may draw from, for a while; None leaves them alone."""
    if seed is None:
        yield
        return
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
