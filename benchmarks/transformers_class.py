"""A model in transformers' own class and ``generate``, as who has no other engine would run it: PaliGemma's class.

Its image encoder and projection are set into the class as they are, so that models are compared for which the class has
no place of its own (``gitllm export --to transformers`` refuses those): what is timed is transformers' language model,
mask, cache and search.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from gitllm_plugin.modeling.stock import stock_inputs


class TransformersClass:
    """Answers as ``Pipeline`` does, greedily and one by one.

    Args:
        pipeline: of a float32 model on the CPU without LoRA, whose weights are shared.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

        model: Any = pipeline.model
        text = copy.deepcopy(model.language_model.config)
        text.use_bidirectional_attention = False  # the prompt is causal: PaliGemma's own is not
        with torch.device("meta"):
            self.model: Any = PaliGemmaForConditionalGeneration(
                PaliGemmaConfig(
                    vision_config=SiglipVisionConfig(num_hidden_layers=1),
                    text_config=text,
                    projection_dim=text.hidden_size,
                    hidden_size=text.hidden_size,
                    vocab_size=text.vocab_size,
                    image_token_index=text.vocab_size,
                )
            ).eval()
        inner = self.model.model
        inner.vision_tower, inner.multi_modal_projector = _Tower(model.image_encoder), model.projection
        inner.language_model, self.model.lm_head = model.language_model.base_model, model.language_model.lm_head
        self._pipeline = pipeline

    @torch.no_grad()
    def answer(self, picture: Any, question: str, instruction: str | None, decoding: Decoding) -> str:
        """Answer one question."""
        pipeline, encoder = self._pipeline, self._pipeline.text_encoder
        pixels = pipeline.pixels(picture)
        ids = encoder.prompts([pipeline.prompt(question, instruction)]).input_ids
        inputs = stock_inputs(self.model, ids, pipeline.model.image_encoder.num_tokens(*pixels.shape[-2:]))
        found = self.model.generate(
            pixel_values=pixels, **inputs, **decoding.as_arguments(), **encoder.special_tokens, use_cache=True
        )
        return encoder.decode(found[:, inputs["input_ids"].shape[1] :])[0]


class _Tower(nn.Module):
    """An image encoder, as the class asks it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        vectors = self.encoder(pixel_values)
        return SimpleNamespace(last_hidden_state=vectors, pooler_output=vectors)
