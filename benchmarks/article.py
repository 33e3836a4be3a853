"""The article's way to compute the loss, with the same modules and so the same weights as ours.

Every text is padded to a fixed length and has an image of its own, encoded in float32; the rule is a dense
float mask ``[B, 1, S, S]`` of 0 and -inf; attention is eager; the head runs on every slot, image and padding too.
It is written without :mod:`gitllm_plugin.modeling.attention` and :mod:`~gitllm_plugin.modeling.layout`, so that
equal losses and gradients mean something.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.batches import Batch
from gitllm_plugin.modeling import GitLLM, ImageEncoder
from gitllm_plugin.modeling.tokens import IGNORED


class Article:
    """Computes losses as the article does.

    Args:
        model: whose modules are used.
        pad_to: tokens that every text is padded to: 128 in the article, 512 in its published configurations.
    """

    def __init__(self, model: GitLLM, pad_to: int) -> None:
        self.model = model
        self.pad_to = pad_to
        self.image_encoder = float32_encoder(model)

    def __call__(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch's supervised tokens."""
        decoder = self.model.language_model
        input_ids, attention_mask, labels = self._pad(batch)
        features = encode_exactly(self.image_encoder, batch.pixel_values[batch.image_index])
        image = self.model.projection(features).to(decoder.dtype)
        mask = dense_mask(attention_mask, image.shape[1], decoder.dtype)
        implementation = decoder.config._attn_implementation
        decoder.config._attn_implementation = "eager"
        try:
            hidden = _DECODERS[decoder.config.model_type](decoder, image, input_ids, attention_mask, mask)
        finally:
            decoder.config._attn_implementation = implementation
        logits = cast(nn.Module, decoder.get_output_embeddings())(hidden)[:, image.shape[1] :]
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)

    def _pad(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        missing = (0, self.pad_to - batch.input_ids.shape[1])
        return (
            F.pad(batch.input_ids, missing, value=1),
            F.pad(batch.attention_mask, missing),
            F.pad(batch.labels, missing, value=IGNORED),
        )


def float32_encoder(model: GitLLM) -> ImageEncoder:
    """Give the model's image encoder, or a copy of it in float32 where it has fewer digits."""
    encoder = model.image_encoder
    return encoder if encoder.dtype in (torch.float32, torch.float64) else copy.deepcopy(encoder).float()


def encode_exactly(encoder: ImageEncoder, pixel_values: Tensor) -> Tensor:
    """Features ``[U, P, vision_dim]`` of ``[U, 3, H, W]``, whatever autocast says outside."""
    with torch.autocast(pixel_values.device.type, enabled=False):
        return encoder(pixel_values)


def dense_mask(attention_mask: Tensor, image_tokens: int, dtype: torch.dtype) -> Tensor:
    """GIT's rule as a float tensor.

    Args:
        attention_mask: long ``[B, T]`` of the text.
        image_tokens: slots in front of it.
        dtype: of the result.

    Returns:
        ``[B, 1, S, S]``, 0 where a query (row) sees a key (column) and the least number elsewhere.
    """
    size = image_tokens + attention_mask.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool, device=attention_mask.device).tril()
    seen[:, :image_tokens] = True
    real = F.pad(attention_mask.bool(), (image_tokens, 0), value=True)
    allowed = seen[None] & real[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=real.device).masked_fill(~allowed, torch.finfo(dtype).min)[
        :, None
    ]


def _opt(decoder: Any, image: Tensor, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> Tensor:
    """Learned positions are added to text alone; the image stands behind ``project_in``."""
    inner = decoder.model.decoder
    text = inner.embed_tokens(input_ids)
    if inner.project_in is not None:
        text = inner.project_in(text)
    positions = (attention_mask.cumsum(1) * attention_mask - 1).long()
    hidden = torch.cat([image, text + inner.embed_positions(attention_mask, position_ids=positions)], 1)
    for layer in inner.layers:
        hidden = _first(layer(hidden, attention_mask=mask))
    for last in (inner.final_layer_norm, inner.project_out):
        hidden = hidden if last is None else last(hidden)
    return hidden


def _llama(decoder: Any, image: Tensor, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> Tensor:
    """Rotary positions run over image and text."""
    hidden = torch.cat([image, decoder.model.embed_tokens(input_ids)], 1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    rotary = decoder.model.rotary_emb(hidden, positions)
    for layer in decoder.model.layers:
        hidden = _first(layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary))
    return decoder.model.norm(hidden)


def _mpt(decoder: Any, image: Tensor, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> Tensor:
    """ALiBi over image and text; MPT takes a mask that is true where nothing is seen."""
    inner = decoder.transformer
    hidden = torch.cat([image, inner.wte(input_ids)], 1)
    bias = inner.build_mpt_alibi_tensor(inner.num_heads, decoder.config.max_seq_len, device=hidden.device)
    for block in inner.blocks:
        hidden = _first(block(hidden, position_bias=bias, attention_mask=mask < 0, layer_past=None))
    return inner.norm_f(hidden)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else cast(Tensor, output)


_DECODERS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "opt": _opt,
    "llama": _llama,
    "mpt": _mpt,
}
