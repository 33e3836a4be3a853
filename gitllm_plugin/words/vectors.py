"""Projected image vectors, as they stand in the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from gitllm_plugin.modeling import GitLLM


@torch.no_grad()
def patch_vectors(model: GitLLM, pixel_values: Tensor) -> Tensor:
    """Give what the language model reads of each patch.

    Args:
        model: on any device.
        pixel_values: ``[U, 3, H, W]``, or ``[U, F, 3, H, W]`` for images that have places.

    Returns:
        float32 on the CPU, ``[U, F, rows, columns, D]``; F is 1 without places. CLS and registers are left out.
    """
    rows, columns = model.grid_shape(*pixel_values.shape[-2:])
    embeds, _ = model.encode_images(pixel_values)
    frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
    patches = embeds.unflatten(1, (frames, -1))[:, :, -rows * columns :]
    return patches.unflatten(2, (rows, columns)).float().cpu()
