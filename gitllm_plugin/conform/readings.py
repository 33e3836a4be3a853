"""How a question can be read: by GIT's rule, and in the ways in which engines go wrong.

A reading is written out: a row of vectors, who sees whom in it, and where each stands. Nothing is cached, padded or
shared, so that the right one says what is to be computed, and a wrong one what a fault would make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """A row ``[image | text]`` of S slots, of which the first P are the image's.

    Attributes:
        image: float32 ``[P, D]``, the images' vectors, one image behind another.
        images: P numbers, the image that each vector is of, long ``[P]``.
        ids: long ``[T]``, prompt and what was answered so far.
        prompt: the tokens of the prompt.
        sees: bool ``[S, S]``, whether the query (row) sees the key (column).
        places: long ``[S]``, counted over image and text; a gap moves the text away from the image.
    """

    image: Tensor
    images: Tensor
    ids: Tensor
    prompt: int
    sees: Tensor
    places: Tensor

    @property
    def image_end(self) -> int:
        """P, the slot where the text begins."""
        return len(self.image)

    @property
    def prompt_end(self) -> int:
        """The slot behind the prompt."""
        return self.image_end + self.prompt


Fault = Callable[[Reading], Reading]
"""Gives a reading as an engine with this fault has it."""


def read_right(image: Tensor, images: Tensor, ids: Tensor, prompt: int) -> Reading:
    """Read by GIT's rule: the image is seen by all, and text by what does not stand before it, which is text."""
    slots = torch.arange(len(image) + len(ids))
    key, query = slots[None, :], slots[:, None]
    return Reading(image, images, ids, prompt, (key < len(image)) | (key <= query), slots)


def image_causal(reading: Reading) -> Reading:
    """Image tokens are read causally, as text is."""
    sees = reading.sees.clone()
    end = reading.image_end
    sees[:end, :end] = sees[:end, :end].tril()
    return replace(reading, sees=sees)


def image_sees_text(reading: Reading) -> Reading:
    """Image tokens see the prompt."""
    sees = reading.sees.clone()
    sees[: reading.image_end, reading.image_end : reading.prompt_end] = True
    return replace(reading, sees=sees)


def text_without_image(reading: Reading) -> Reading:
    """Text does not see the image."""
    sees = reading.sees.clone()
    sees[reading.image_end :, : reading.image_end] = False
    return replace(reading, sees=sees)


def text_bidirectional(reading: Reading) -> Reading:
    """The prompt's tokens see the whole prompt."""
    sees = reading.sees.clone()
    prompt = slice(reading.image_end, reading.prompt_end)
    sees[prompt, prompt] = True
    return replace(reading, sees=sees)


def all_bidirectional(reading: Reading) -> Reading:
    """Image and prompt are one prefix in which all see all, as PaliGemma's own prompts are."""
    return text_bidirectional(image_sees_text(reading))


def text_moved(reading: Reading) -> Reading:
    """Text stands one place too far from the image."""
    places = reading.places.clone()
    places[reading.image_end :] += 1
    return replace(reading, places=places)


def text_from_zero(reading: Reading) -> Reading:
    """Places of the text are counted without the image."""
    places = reading.places.clone()
    places[reading.image_end :] -= reading.image_end
    return replace(reading, places=places)


def answer_moved(reading: Reading) -> Reading:
    """Tokens of the answer stand one place too far from the prompt."""
    places = reading.places.clone()
    places[reading.prompt_end :] += 1
    return replace(reading, places=places)


def answer_without_image(reading: Reading) -> Reading:
    """Tokens of the answer do not see the image."""
    sees = reading.sees.clone()
    sees[reading.prompt_end :, : reading.image_end] = False
    return replace(reading, sees=sees)


def images_apart(reading: Reading) -> Reading:
    """Images of one question do not see each other."""
    sees = reading.sees.clone()
    end = reading.image_end
    sees[:end, :end] &= reading.images[:, None] == reading.images[None, :]
    return replace(reading, sees=sees)


@dataclass(frozen=True)
class TextBefore:
    """Text that should be gone, or not be seen, stands between image and prompt.

    Attributes:
        ids: its tokens.
    """

    ids: tuple[int, ...]

    def __call__(self, reading: Reading) -> Reading:
        """Give the reading with that text in it."""
        before = torch.tensor(self.ids, dtype=torch.long)
        ids, prompt = torch.cat([before, reading.ids]), len(before) + reading.prompt
        return read_right(reading.image, reading.images, ids, prompt)


@dataclass(frozen=True, eq=False)
class VectorsBefore:
    """Vectors that should not be seen stand in front of the image.

    Attributes:
        vectors: float32 ``[n, D]``.
    """

    vectors: Tensor

    def __call__(self, reading: Reading) -> Reading:
        """Give the reading with them in it."""
        image = torch.cat([self.vectors, reading.image])
        images = torch.cat([reading.images.new_full((len(self.vectors),), -1), reading.images])
        return read_right(image, images, reading.ids, reading.prompt)


ALONE: tuple[Fault, ...] = (
    image_causal,
    image_sees_text,
    text_without_image,
    answer_without_image,
    text_bidirectional,
    all_bidirectional,
    text_moved,
    text_from_zero,
    answer_moved,
)
"""What may go wrong in one question about one picture."""
