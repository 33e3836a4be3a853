"""How much the tokens of a text attend to the image, in memory that the text's length does not square."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.decoder import Decoder
from gitllm_plugin.modeling.transfer import to_device


@torch.no_grad()
def attention_to_image(
    decoder: Decoder, image_embeds: Tensor, image_valid: Tensor, input_ids: Tensor, last: int | None = None
) -> Tensor:
    """Measure how much tokens of a text attend to each image token, averaged over heads.

    What stands before those tokens is read as always and cached; only the tokens themselves are read with attention
    that holds its weights, ``last`` rows of them and not one for each token of a long prompt.

    Args:
        decoder: its language model in evaluation mode.
        image_embeds, image_valid: one image, as for :meth:`~gitllm_plugin.modeling.decoder.Decoder.forward`.
        input_ids: long ``[1, T]`` without padding.
        last: for how many of the last tokens, 1 to T; None: for all.

    Returns:
        float32 ``[layers, last, P]`` on the CPU. What a token does not give to the image goes to the text before it.

    Raises:
        ConfigError: a decoder that does not give its attention weights, or one whose prompts are read as a whole.
        DataError: image and text are longer than the context.
    """
    if decoder.attention == "prompt":
        raise ConfigError(
            "model.attention=prompt reads prompts as a whole: there is no map of one token behind another"
        )
    language_model = decoder.language_model
    asked = input_ids.shape[1] if last is None else last
    before, tokens = input_ids[:, :-asked], input_ids[:, -asked:]
    layout = decoder.rows(image_valid, torch.ones(before.shape))
    decoder.check_fits(layout, asked)
    layout, before, tokens = to_device((layout, before, tokens), image_embeds.device)
    cache = DynamicCache(config=language_model.config)
    decoder.read(layout, image_embeds, before, past_key_values=cache, use_cache=True, logits_to_keep=1)
    with _eager_attention(language_model):
        weights = decoder.read_behind(
            cache,
            layout.rule,
            tokens,
            torch.cat([layout.attention_mask, torch.ones_like(tokens)], 1),
            order=torch.arange(asked, device=tokens.device)[None],
            before=decoder.end_of(layout),
            output_attentions=True,
            logits_to_keep=1,
        ).attentions
    if not weights or weights[0] is None:
        raise ConfigError(f"decoders of type {language_model.config.model_type!r} do not give attention weights")
    return torch.stack([layer[0].float().mean(0)[:, layout.image_slots].cpu() for layer in weights])


@contextmanager
def _eager_attention(language_model: PreTrainedModel) -> Iterator[None]:
    """Let attention compute its weights inside the block; the other kinds never hold them."""
    before = cast(Any, language_model).config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)
