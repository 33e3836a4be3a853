"""Which picture each image of a text is of, and where in it it stands: the whole of it, or a tile.

A picture in tiles is several images of one text. What says of a batch's images ``[U, F, 3, H, W]`` which are real is
``num_images``: how many of each entry, ``[U]``; or the place of each, ``[U, F, 3]``: the number of its picture, and row
and column of the tile, counted from 1, both 0 for the whole picture. Where there is no image, all three are -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_TILES = 64
"""Of a picture, at most: so many rows and columns have marks."""


def whole_pictures(count: int, device: torch.device | None = None) -> Tensor:
    """Give the places of so many pictures that are an image each, long ``[count, 3]``."""
    return torch.nn.functional.pad(torch.arange(count, device=device)[:, None], (0, 2))


def places_of(num_images: Tensor | None, entries: int, frames: int) -> Tensor:
    """Give the place of each image, long ``[entries, frames, 3]``, where ``num_images`` is, or else on the host."""
    if num_images is not None and num_images.ndim == 3:
        return num_images
    if num_images is None:
        return whole_pictures(frames).expand(entries, -1, -1)
    places = whole_pictures(frames, num_images.device).expand(entries, -1, -1)
    return places.masked_fill((places[:, :, 0] >= num_images[:, None])[:, :, None], -1)


def counts_of(num_images: Tensor) -> Tensor:
    """Count the images of each entry, long ``[U]``."""
    return (num_images[:, :, 0] >= 0).sum(1) if num_images.ndim == 3 else num_images


def pictures_of(num_images: Tensor) -> Tensor:
    """Count the pictures of each entry, long ``[U]``; of those in tiles each once."""
    return num_images[:, :, 0].amax(1) + 1 if num_images.ndim == 3 else num_images


def stack_images(
    images: Sequence[Tensor | None], places: Sequence[Tensor | None] | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Put the images of several entries into one batch.

    Args:
        images: of each entry ``[F, 3, H, W]``, ``[3, H, W]`` of one, or None where it has none.
        places: long ``[F, 3]`` of each; None for whole pictures.

    Returns:
        The images ``[U, F, 3, H, W]``, zeros where an entry has fewer; None where none has any. And ``num_images``:
        places where any are given; else counts, or None where all entries have as many.
    """
    several = [image[None] if image is not None and image.ndim == 3 else image for image in images]
    counts = [0 if image is None else len(image) for image in several]
    frames = max(counts, default=0)
    if frames == 0:
        return None, None
    real = next(image for image in several if image is not None and len(image))
    stacked = real.new_zeros(len(images), frames, *real.shape[1:])
    for row, image, count in zip(stacked, several, counts, strict=True):
        if image is not None:
            row[:count] = image
    if places is None or all(place is None for place in places):
        return stacked, None if min(counts) == frames else torch.tensor(counts)
    placed = torch.full((len(images), frames, 3), -1)
    for row, place, count in zip(placed, places, counts, strict=True):
        row[:count] = whole_pictures(count) if place is None else place
    return stacked, placed
