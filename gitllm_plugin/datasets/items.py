"""From a group of M3IT, images and the texts about them, to an item of a data set, whichever file it comes from."""

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.m3it.prompts import prompt_behind
from gitllm_plugin.processors.picture_processor import PictureProcessor

_MOST_BROKEN = 10

_Place = TypeVar("_Place")


class ItemMaker:
    """What makes the items that :func:`~gitllm_plugin.datasets.collate.collate_groups` takes.

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
        # LAVIS's own processors take one text; whether one knows instructions shows in its signature only.
        self._takes_two = len(inspect.signature(text_processor).parameters) > 1

    def make(self, group: Group, place: str, seed: int | None = None, features: Tensor | None = None) -> dict:
        """Make an item.

        Args:
            group: encoded images, if any, and what is asked about them.
            place: where it comes from, for messages.
            seed: of what the processor does at random; None: drawn from the process's generators.
            features: bfloat16 [images, P, D], what an encoder made of the images before; they are not decoded then.

        Returns:
            ``image``: what the processor makes, [3, H, W] of one image and [F, 3, H, W] of several, or None; of
            features [1, P, D] and [F, 1, P, D]; ``places``: of pictures in tiles, which are [F, 3, H, W], which tile
            each image is (:mod:`gitllm_plugin.modeling.places`), or None; ``image_mean`` and ``image_std`` (float [3])
            where the processor leaves pixels to be normalised; ``texts``: of each a mapping with the keys of
            :data:`~gitllm_plugin.datasets.collate.TEXT_KEYS`, ``text_rejected`` where it has a worse answer, and
            ``images_seen`` where not all images are its own (:class:`~gitllm_plugin.m3it.group.Text`).

        Raises:
            DataError: if an image is broken.
        """
        # As images of one channel, so that they travel the way that pixels do; only the image encoder tells them apart.
        places = None
        if features is not None and len(features):
            image = features[:, None] if len(features) > 1 else features
        else:
            image, places = self._load(group.images, place, seed) if group.images else (None, None)
        return {
            "image": image,
            "places": places,
            "image_mean": self._mean,
            "image_std": self._std,
            "texts": [self._make_text(text) for text in group.texts],
        }

    def _load(self, images: Sequence[bytes], place: str, seed: int | None) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.vis_processor, PictureProcessor):
            if self.vis_processor.transform.max_tiles > 1:
                return self.vis_processor.load_tiles(images, place, seed)
            return self.vis_processor.load(images, place, seed), None
        with _drawing_from(seed):
            pixels = [self.vis_processor(decode_image(image, place)) for image in images]
        return pixels[0] if len(pixels) == 1 else torch.stack(pixels), None

    def prompt_of(self, text: Text) -> str:
        """Make the prompt of a text; of a conversation it knows the turns before, of which the first is instructed."""
        return prompt_behind(text.turns, text.question, text.instruction, self._prompt)

    def _prompt(self, question: str, instruction: str | None) -> str:
        if self._takes_two:
            return self.text_processor(question, instruction)
        return self.text_processor(" ".join(words for words in (instruction, question) if words))

    def example_image(self, image: bytes, place: str) -> Tensor:
        """Make the pixels of one image file, of the size that all have, float or uint8 [3, H, W].

        Of pictures in tiles [F, 3, H, W], as many as there may be of one.

        Raises:
            DataError: if it is broken.
        """
        pixels, places = self._load([image], place, seed=0)
        if places is None:
            return pixels
        transform = self.vis_processor.transform
        return pixels[:1].expand(transform.max_tiles + transform.thumbnail, -1, -1, -1)

    def _make_text(self, text: Text) -> dict[str, Any]:
        return {
            "text_input": self.prompt_of(text),
            "text_output": text.answers[0],
            "instance_id": text.id,
            "config": text.config,
            "references": list(text.answers),
            "question": text.question,
            **({} if text.rejected is None else {"text_rejected": text.rejected}),
            **({} if text.images is None else {"images_seen": text.images}),
        }


def first_image(places: Iterable[_Place], make: Callable[[_Place], Tensor | None]) -> Tensor | None:
    """Make one of a data set's images, of which all have the same size.

    Args:
        places: where there may be one, in the order in which they are tried.
        make: makes what is at a place, None where there is none.

    Returns:
        None: there is none, or the first ten could not be read, which is told when they are read for use.
    """
    broken = 0
    for place in places:
        try:
            image = make(place)
        except DataError:
            broken += 1
            if broken == _MOST_BROKEN:
                return None
            continue
        if image is not None:
            return image
    return None


@contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    """Seed the generators that processors may draw from, for a while; None leaves them alone."""
    if seed is None:
        yield
        return
    # All three are put back: what the process draws for anything else must not depend on the item.
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
