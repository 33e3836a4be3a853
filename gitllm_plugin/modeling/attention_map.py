"""Where a text looks in its image: attention weights, read from one pass over image and text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.layout import lay_out
from gitllm_plugin.modeling.model import GitLLM


@torch.no_grad()
def attention_to_image(model: GitLLM, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    """How much each text token attends to each image token, averaged over heads.

    Args:
        model: any.
        input_ids: long ``[1, T]`` without padding.
        pixel_values: ``[1, 3, H, W]`` or ``[1, F, 3, H, W]``.

    Returns:
        float32 ``[layers, T, F*P]`` on the CPU. What a token does not give to the image goes to the text before it.

    Raises:
        ConfigError: a decoder that does not give its attention weights.
    """
    image_embeds, image_valid = model.encode_images(pixel_values)
    layout = lay_out(image_valid, torch.ones_like(input_ids, dtype=torch.bool))
    model._check_context(layout)
    rows = model._rows(layout, image_embeds, input_ids)
    with _eager(model.language_model):
        output = model._decode(layout, rows, image_embeds, use_cache=False, output_attentions=True)
    weights = output.attentions
    if not weights or weights[0] is None:
        raise ConfigError(f"decoders of type {model.language_model.config.model_type!r} do not give attention weights")
    stacked = torch.stack([layer[0].float().mean(0) for layer in weights])  # [layers, S, S]
    return stacked[:, layout.text_slot][:, :, layout.image_slot].cpu()


@contextmanager
def _eager(language_model: PreTrainedModel) -> Iterator[None]:
    """Attention that computes its weights; the other kinds never hold them."""
    before = cast(Any, language_model).config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)
