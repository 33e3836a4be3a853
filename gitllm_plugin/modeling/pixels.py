"""Pixels on their way to the model, and features that were computed before, which travel in their place.

Features of an image, ``[P, vision_dim]``, are an image of one channel: ``[1, P, vision_dim]``. So they are stacked,
counted, repeated and moved as pixels are, and only the image encoder tells them apart.
"""

import torch
from torch import Tensor


def are_features(pixel_values: Tensor) -> bool:
    """Tell whether ``[..., 1 or 3, H, W]`` are features and not pixels, which have three channels."""
    return pixel_values.shape[-3] == 1


def normalize_pixels(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute ``(pixels / 255 - mean) / std``.

    Args:
        pixels: uint8 ``[..., 3, H, W]``.
        mean: of each channel, where white is 1: ``[3]``, or ``[U, 3]`` for pixels ``[U, ..., 3, H, W]``.
        std: as ``mean``.

    Returns:
        float32, of the shape of ``pixels``.
    """
    shape = (*mean.shape[:-1], *[1] * (pixels.ndim - mean.ndim - 2), 3, 1, 1)
    mean, std = mean.to(torch.float32).view(shape), std.to(torch.float32).view(shape)
    # In two passes over the pixels instead of three: they are most of what a batch holds.
    return pixels.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)
