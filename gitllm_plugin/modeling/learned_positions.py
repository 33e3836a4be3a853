"""Images in front of learned positions: they take none, and come in where positions come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gitllm_plugin.modeling.layout import Layout


@contextmanager
def image_behind_positions(
    language_model: nn.Module, name: str | None, layout: Layout, image_embeds: Tensor
) -> Iterator[None]:
    """Put image features where learned positions come out, instead of a position, inside the block.

    The decoder adds that module's output to (projected) token embeddings, which are zero on image
    slots; so the sum is the image feature there, and token + position on text.

    Args:
        language_model: the decoder.
        name: of its module of learned positions, as a family has it.
        layout: where images stand.
        image_embeds: float ``[U, P, D]``.
    """
    # By the end of its name: what is wrapped around a model (the compiler, PEFT) puts names of its own in front.
    module = next(module for path, module in language_model.named_modules() if f".{path}".endswith(f".{name}"))
    # Of every slot, and not only of the new ones, because `generate` calls again behind a cache.
    is_image = torch.zeros_like(layout.attention_mask, dtype=torch.bool)
    is_image.view(-1).index_fill_(0, layout.image_slots, True)
    rows = image_embeds.new_zeros(*is_image.shape, image_embeds.shape[-1])
    rows = layout.place_image(rows, image_embeds)

    def replace(module: nn.Module, args: Any, positions: Tensor) -> Tensor:
        # Beams are rows of their own, beside each other.
        repeats = positions.shape[0] // is_image.shape[0]
        # Behind a cache the decoder asks for the end of its rows alone.
        length = positions.shape[1]
        if length == 1 < is_image.shape[1]:
            return positions  # a new token, whatever stands at the end of the prompt
        mask = is_image[:, -length:].repeat_interleave(repeats, dim=0)
        image = rows[:, -length:].repeat_interleave(repeats, dim=0)
        return torch.where(mask[..., None], image.to(positions.dtype), positions)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
