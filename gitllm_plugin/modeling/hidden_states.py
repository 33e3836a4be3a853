"""What the language model makes of images and texts on its way: its hidden states under the rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gitllm_plugin.modeling.transfer import to_device

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
    """Compute hidden states of images and of texts behind them; an image sees no text.

    By ``attention: prompt`` it does.

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
    layout = decoder.rows(image_valid, text_valid, image_index)
    decoder.check_fits(layout)
    layout, input_ids = to_device((layout, input_ids), image_embeds.device)
    output = decoder.read(layout, image_embeds, input_ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    read = at_depth(output.hidden_states, depth)
    rows, tokens = len(input_ids), image_valid.shape[1]
    # A row a text: each has its image to itself.
    places = layout.image_slots // read.shape[1] * tokens + layout.image_places % max(tokens, 1)
    of_images = read.new_zeros(rows * tokens, read.shape[-1]).index_copy(0, places, layout.image_of(read))
    return of_images.unflatten(0, (rows, tokens)), layout.text_of(read)
