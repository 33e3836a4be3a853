"""Where the pictures of a text stand in it: each where the text says so, or all in front, which is one case of it.

A picture stands in front of so many tokens of its text: of ``see <image> and <image> ?`` the pictures stand in front of
token 1 and token 2. Pictures with no text between them are one block, as those in front of all text are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gitllm_plugin.config.model import IMAGE_MARK
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.places import places_of
from gitllm_plugin.modeling.transfer import to_host

Array = np.ndarray[Any, np.dtype[Any]]


class MarksError(DataError):
    """A text that does not say of all its pictures where they stand, or of more than it has.

    Attributes:
        row: its place among the texts that were given.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row

    def __reduce__(self) -> tuple[type[MarksError], tuple[str, int]]:
        return MarksError, (str(self), self.row)


@dataclass(frozen=True)
class Marks:
    """Where the pictures of N texts about U images of up to P tokens stand; on the host.

    Attributes:
        before: long ``[N, K]``: how many tokens of its text stand in front of each picture of a text. It never falls
            along a row but to -1: such a picture is not read.
        pictures: long ``[U, P]``: the number of the picture that each image token is of.
    """

    before: Tensor
    pictures: Tensor

    def standing(self, images: Array, index: Array, text_lengths: Array) -> Standing:
        """Say of each text's image tokens where they stand.

        Args:
            images: bool ``[U, P]``, which are real.
            index: ``[N]``, which image each text reads.
            text_lengths: ``[N]``.
        """
        pictures = self.pictures.numpy()[index].clip(0)
        before = np.take_along_axis(self.before.numpy(), pictures, 1)
        shown = images[index] & (before >= 0)
        assert (before.max(1, initial=0) <= text_lengths).all(), "a picture stands behind the end of its text"
        rows, columns = shown.nonzero()
        counts = np.zeros((len(index), int(text_lengths.max(initial=0)) + 2), dtype=np.int64)
        np.add.at(counts, (rows, before[rows, columns]), 1)
        return Standing(shown, before, counts, counts.cumsum(1))


def marks_of(
    before: Tensor | None, num_images: Tensor | None, pixel_values: Tensor | None, image_valid: Tensor
) -> Marks | None:
    """Say where pictures stand, on the host; None where all are in front.

    Args:
        before: see :class:`Marks`, or None.
        num_images, pixel_values: of a model, see :meth:`~gitllm_plugin.modeling.model.GitLLM.encode_images`.
        image_valid: what that gave.

    Raises:
        ConfigError: there are more pictures than ``before`` has columns.
    """
    if before is None or pixel_values is None:
        return None
    frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
    here, num_images = to_host(before, num_images)
    entries, tokens = image_valid.shape
    pictures = places_of(num_images, entries, frames)[:, :, 0].repeat_interleave(tokens // frames, 1)
    if (most := int(pictures.max()) + 1) > here.shape[1]:
        raise ConfigError(f"image_marks has {here.shape[1]} columns, and there are {most} pictures; give one of each")
    return Marks(here, pictures)


@dataclass(frozen=True)
class Standing:
    """Where image tokens stand in N rows of one text each.

    Attributes:
        shown: bool ``[N, P]``, which image tokens stand in each row.
        before: ``[N, P]``, how many text tokens stand in front of each.
        counts: ``[N, T + 2]``, how many image tokens stand right in front of each text token, and at the end.
        up_to: the same, with all that stand further in front.
    """

    shown: Array
    before: Array
    counts: Array
    up_to: Array

    def ends(self, starts: Array, size: int) -> Array:
        """Say how far each image token sees by GIT's rule: to the end of its block; ``[N, size]``, 0 elsewhere.

        Args:
            starts: ``[N]``, the slot in which each row begins.
            size: slots of a row.
        """
        found = np.zeros((len(starts), size), dtype=np.int64)
        rows, columns = self.shown.nonzero()
        order = (self.shown.cumsum(1) - 1)[rows, columns]
        before = self.before[rows, columns]
        assert (np.diff(before)[np.diff(rows) == 0] >= 0).all(), "pictures stand in a text in their order"
        found[rows, starts[rows] + before + order] = starts[rows] + before + self.up_to[rows, before]
        return found


def place_pictures(
    marks: Sequence[Sequence[int]], pictures: Sequence[int], seen: Sequence[int | None] | None = None
) -> Tensor | None:
    """Bring together what texts say and what pictures there are.

    Args:
        marks: of each of N texts how many tokens stand in front of each of its marks; empty: all pictures are in front.
        pictures: how many there are of each.
        seen: how many of them belong to the text; None: all. Those of a conversation's later turns do not.

    Returns:
        long ``[N, K]``, see :attr:`Marks.before`; None where all pictures of all texts are in front.

    Raises:
        MarksError: a text has marks, and not as many as pictures.
    """
    rows = []
    for row, (places, count, own) in enumerate(zip(marks, pictures, seen or [None] * len(marks), strict=True)):
        own = count if own is None else min(own, count)
        if fault := wrong_marks(len(places), own):
            raise MarksError(fault, row)
        rows.append([*(places or [0] * own), *[-1] * (count - own)])
    if not any(any(row) for row in rows):
        return None
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows])


def wrong_marks(marks: int, pictures: int) -> str | None:
    """Say why a text with so many marks cannot be about so many pictures; None where it can."""
    if marks in (0, pictures):
        return None
    return (
        f"the text has {marks} times {IMAGE_MARK}, and there {'is' if pictures == 1 else 'are'} {pictures} "
        f"picture{'' if pictures == 1 else 's'}: write {IMAGE_MARK} once for each picture, in their order; or not at "
        "all, and all stand in front of the text"
    )
