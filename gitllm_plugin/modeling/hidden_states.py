"""What the language model makes of images and texts on its way: its hidden states under the rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gitllm_plugin.modeling.layout import lay_out

if TYPE_CHECKING:
    from gitllm_plugin.modeling.decoder import Decoder

Depth = Literal["middle", "last"]
"""Of the layers: the last ones prepare the next token, those in the middle hold more of what a text is about."""


def at_depth(states: tuple[Tensor, ...], depth: Depth) -> Tensor:
    """Choose one of the embeddings and all layers' hidden states, as transformers gives them."""
    return states[len(states) // 2 if depth == "middle" else -1]


@torch.no_grad()
def hidden_states(
    decoder: Decoder,
    image_embeds: Tensor,
    image_valid: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    image_index: Tensor | None = None,
    depth: Depth = "last",
) -> tuple[Tensor, Tensor]:
    """Compute hidden states of images and of texts behind them; those of an image do not see its text.

    Args:
        decoder: its language model in evaluation mode.
        image_embeds, image_valid, input_ids, attention_mask, image_index: as for
            :meth:`~gitllm_plugin.modeling.decoder.Decoder.forward`; no image or no text is no columns.
        depth: which layer's.

    Returns:
        ``[N, P, D]`` of the images that the texts read, and ``[N, T, D]`` of the texts; zeros on padding.

    Raises:
        DataError: image and text are longer than the context.
    """
    text_valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    layout = lay_out(image_valid, text_valid.bool(), image_index)
    if image_index is not None:
        image_embeds, image_valid = image_embeds[image_index], image_valid[image_index]
    decoder.check_fits(layout)
    output = decoder.read(layout, image_embeds, input_ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    read = at_depth(output.hidden_states, depth)
    of_images = read.new_zeros(*image_valid.shape, read.shape[-1])
    of_images[image_valid.bool()] = read[layout.image_row, layout.image_slot]
    return of_images, layout.text_of(read)
