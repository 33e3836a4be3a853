"""Normalising pixels where the model is: a loader that carries bytes moves a quarter of what floats would be."""

import torch
from torch import Tensor


def normalize_pixels(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(pixels / 255 - mean) / std``.

    Args:
        pixels: uint8 ``[..., 3, H, W]``.
        mean: of each channel, where white is 1: ``[3]``, or ``[U, 3]`` for pixels ``[U, ..., 3, H, W]``.
        std: as ``mean``.

    Returns:
        float32, of the shape of ``pixels``.
    """
    shape = (*mean.shape[:-1], *[1] * (pixels.ndim - mean.ndim - 2), 3, 1, 1)
    mean, std = mean.to(torch.float32).view(shape), std.to(torch.float32).view(shape)
    return pixels.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)  # in two passes over the pixels
