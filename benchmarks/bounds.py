"""What a training step or a token at least costs on a card, from its published peaks: beside what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.batches import Batch
from gitllm_plugin.modeling import GitLLM


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        tflops: dense bfloat16 matrix products, 10^12 operations a second.
        tb_per_second: of its memory.
        gb: of memory.
    """

    tflops: float
    tb_per_second: float
    gb: float


CARDS = {"H100": Card(989.4, 3.35, 80), "H200": Card(989.4, 4.8, 141)}
"""The SXM forms, by NVIDIA's data sheets."""


@dataclass(frozen=True)
class Work:
    """Of one step, or of one token for each text.

    Attributes:
        flops: operations of matrix products that the result needs, none of them twice.
        bytes: that have to be moved: weights, and what is kept for them.
    """

    flops: float
    bytes: float

    def seconds(self, card: Card) -> float:
        """Give the least time that a card needs: for the operations, or for the bytes."""
        return max(self.flops / (card.tflops * 1e12), self.bytes / (card.tb_per_second * 1e12))


def training_work(model: GitLLM, batch: Batch) -> Work:
    """Count a step of ours: frozen weights, a trained projection and LoRA.

    Operations: of the decoder 2 a weight and token forward and 2 for the gradient of what went in, of attention its
    products three times, of the head those of supervised tokens, of the encoder the forward pass. Bytes: all weights
    twice, and seven numbers a trained weight: itself, its gradient and two moments, read, and all but one written.
    """
    image_tokens = model.image_encoder.num_tokens(*batch.pixel_values.shape[-2:])
    images, lengths = len(batch.pixel_values), batch.attention_mask.sum(1).tolist()
    config: Any = model.language_model.config
    layers, width = config.num_hidden_layers, config.hidden_size
    scores = images * image_tokens**2 + sum(length * (image_tokens + (length + 1) / 2) for length in lengths)
    tokens = batch.num_real_tokens(image_tokens)
    vision: Any = model.image_encoder.tower.config
    encoder = 2 * _matrices(model.image_encoder) * images * image_tokens
    encoder += 4 * vision.num_hidden_layers * vision.hidden_size * images * image_tokens**2
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = 4 * decoder_weights(model) * tokens + 3 * 4 * layers * width * scores + encoder
    flops += 4 * _head(model).numel() * batch.num_supervised
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Work(flops, 2 * size + 7 * 4 * trained)


def decoding_work(model: GitLLM, texts: int, length: int) -> Work:
    """Count one more token of each text: the decoder's weights once for all, and each text's keys and values."""
    config: Any = model.language_model.config
    weights = decoder_weights(model) + _head(model).numel()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * config.hidden_size // config.num_attention_heads
    cached = 2 * 2 * config.num_hidden_layers * width * length * texts  # keys and values, 2 bytes a number
    return Work(2 * weights * texts, 2 * weights + cached)


def decoder_weights(model: GitLLM) -> int:
    """N of the formula: matrices of the decoder, embeddings and head left out."""
    outside = {id(module.weight) for module in model.language_model.modules() if isinstance(module, torch.nn.Embedding)}
    outside.add(id(_head(model)))
    return sum(p.numel() for p in model.language_model.parameters() if p.ndim >= 2 and id(p) not in outside)


def cells(work: Work, count: float) -> list[str]:
    """Give operations and bytes, and how many of ``count`` a second each card reaches at most."""
    return [
        f"{work.flops / 1e12:.3g}",
        f"{work.bytes / 1e9:.3g}",
        *(f"{count / work.seconds(card):.4g}" for card in CARDS.values()),
    ]


def header(what: str) -> Sequence[str]:
    """Name the columns of :func:`cells`."""
    return ["TFLOP", "GB", *(f"{what} {name} at most" for name in CARDS)]


def _matrices(module: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if p.ndim >= 2 and "position_embedding" not in name)


def _head(model: GitLLM) -> torch.Tensor:
    head: Any = model.language_model.get_output_embeddings()
    return head.weight
