"""The ways to compute one loss that are compared, and a training step around each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast
from unittest import mock

import torch
from torch import Tensor

from benchmarks.article import Article, encode_exactly, float32_encoder
from benchmarks.batches import Batch
from gitllm_plugin.modeling import GitLLM

Loss = Callable[[Batch], Tensor]

OURS = "ours"
MASKED = "ours, dense mask in packed rows"
FEATURES = "ours, features of images given"
WAYS: dict[str, Callable[[GitLLM], Loss]] = {
    "article, padded to 128": lambda model: Article(model, 128),
    "article, padded to 512": lambda model: Article(model, 512),
    MASKED: lambda model: lambda batch: ours_with_masks(model, batch),
    OURS: lambda model: lambda batch: ours(model, batch),
}
"""Name -> what makes a function from a batch to its loss."""
ABLATION: dict[str, Callable[[GitLLM], Loss]] = {
    MASKED: WAYS[MASKED],
    "ours, an image for each text": lambda model: lambda batch: ours(model, _with_an_image_each(batch)),
    "ours, logits everywhere": lambda model: lambda batch: ours(model, batch, logits="all"),
    "ours, last layer everywhere": lambda model: lambda batch: _with_whole_last_layer(model, batch),
    "ours, images encoded in float32": lambda model: _with_encoder_in_float32(model),
    FEATURES: lambda model: _with_features(model),
}
"""Ours with one thing undone, or, in the last line, with images that were encoded before."""


def ours(model: GitLLM, batch: Batch, logits: Literal["all", "none"] = "none") -> Tensor:
    """Give the loss as training computes it."""
    out = model(
        batch.input_ids,
        batch.attention_mask,
        batch.pixel_values,
        batch.labels,
        image_index=batch.image_index,
        logits=logits,
    )
    assert out.loss is not None
    return out.loss


def ours_with_masks(model: GitLLM, batch: Batch) -> Tensor:
    """Give the same through SDPA with dense masks, several images with their texts in a row."""
    implementation = cast(str, model.language_model.config._attn_implementation)
    model.language_model.set_attn_implementation(implementation if implementation == "eager" else "sdpa")
    try:
        return ours(model, batch)
    finally:
        model.language_model.set_attn_implementation(implementation)


def _with_an_image_each(batch: Batch) -> Batch:
    each = torch.arange(batch.num_texts, device=batch.image_index.device)
    return replace(batch, pixel_values=batch.pixel_values[batch.image_index], image_index=each)


def _with_whole_last_layer(model: GitLLM, batch: Batch) -> Tensor:
    with mock.patch("gitllm_plugin.modeling.last_layer.feed_forward", return_value=None):
        return ours(model, batch)


def _with_encoder_in_float32(model: GitLLM) -> Loss:
    encoder = float32_encoder(model)

    def loss(batch: Batch) -> Tensor:
        with torch.no_grad():
            features = encode_exactly(encoder, batch.pixel_values)
        return ours(model, replace(batch, pixel_values=features[:, None]))

    return loss


def _with_features(model: GitLLM) -> Loss:
    encoded: list[Batch] = []  # the last batch, then it with features

    def loss(batch: Batch) -> Tensor:
        if not encoded or encoded[0] is not batch:
            with torch.no_grad():
                features = model.image_encoder(batch.pixel_values)[:, None]
            encoded[:] = batch, replace(batch, pixel_values=features)
        return ours(model, encoded[1])

    return loss


def training_step(model: GitLLM, loss: Loss) -> Callable[[Batch], None]:
    """Forward, backward, clipping and a step of AdamW, with a learning rate of 0: weights stay what they are."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
