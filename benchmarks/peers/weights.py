"""The same random weights in every program, without a file: each is drawn from its name.

A program's own names become transformers' by a function that its adapter gives: ``text.`` and the name in the language
model, ``image.`` and the name in the vision tower, ``projection.0`` and ``projection.1``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Names = Callable[[str], str | Sequence[str]]
"""From a parameter's own name to the common one; to several where it is those matrices, one below another."""


def common_name(name: str) -> str:
    """Take out what PEFT adds to names."""
    for part in ("base_model.model.", ".base_layer", ".default"):
        name = name.replace(part, "")
    return name


@torch.no_grad()
def fill(model: nn.Module, names: Names) -> None:
    """Draw every parameter, in place."""
    for own, parameter in model.named_parameters():
        found = names(common_name(own))
        parts = [found] if isinstance(found, str) else found
        for name, part in zip(parts, parameter.chunk(len(parts)), strict=True):
            part.copy_(_draw(name, part))


def _draw(name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(like.numel(), generator=generator).view(like.shape)
    if name.startswith("image.") and "lora_B" in name:
        return torch.zeros_like(values)  # ours has no LoRA there
    if "embed" in name and "patch" not in name or "lora_B" in name:
        return 0.02 * values
    if like.ndim > 1:
        return values / math.sqrt(like[0].numel())
    return 0.02 * values + (name.endswith("weight"))
