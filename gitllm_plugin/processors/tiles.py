"""Pictures of any shape as tiles of the encoder's size, in the grid that is nearest to their proportions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def best_grid(height: int, width: int, side: int, max_tiles: int) -> tuple[int, int]:
    """Choose rows and columns of tiles as InternVL does (Chen et al. 2024, "How Far Are We to GPT-4V?", section 3.2).

    Of all grids of at most ``max_tiles``, the one whose width to height is nearest to the picture's; of those of one
    proportion the largest whose tiles have less than twice the picture's pixels.

    Args:
        height, width: of the picture, in pixels.
        side: of a tile, in pixels.
        max_tiles: most tiles.
    """
    nearest, best = float("inf"), (1, 1)
    for rows, columns in _grids(max_tiles):
        off = abs(width / height - columns / rows)
        if off < nearest or (off == nearest and height * width > 0.5 * side**2 * rows * columns):
            nearest, best = off, (rows, columns)
    return best


def cut(pixels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut ``[3, rows * side, columns * side]`` into tiles.

    Returns:
        The tiles ``[T, 3, side, side]``, row by row, and row and column of each, counted from 1: long ``[T, 2]``.
    """
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    tiles = pixels.unflatten(2, (columns, side)).unflatten(1, (rows, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return tiles.contiguous(), torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1))


def in_tiles(pictures: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put pictures that are in tiles behind each other, each with its rows and columns.

    Args:
        pictures: of each the images ``[T, 3, side, side]``, and row and column of each image, long ``[T, 2]``.

    Returns:
        The images ``[F, 3, side, side]``, and their places, long ``[F, 3]``, see :mod:`gitllm_plugin.modeling.places`.
    """
    numbers = [torch.full((len(tiles), 1), number) for number, (tiles, _) in enumerate(pictures)]
    places = [torch.cat([number, grid], 1) for number, (_, grid) in zip(numbers, pictures, strict=True)]
    return torch.cat([tiles for tiles, _ in pictures]), torch.cat(places)


@lru_cache
def _grids(max_tiles: int) -> list[tuple[int, int]]:
    """List rows and columns of all grids, the smallest first; of one size the narrow ones."""
    sides = range(1, max_tiles + 1)
    return sorted(
        ((rows, columns) for columns in sides for rows in sides if rows * columns <= max_tiles),
        key=lambda grid: grid[0] * grid[1],
    )
