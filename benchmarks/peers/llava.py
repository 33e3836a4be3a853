"""transformers' class of LLaVA: the image is read causally, as text is, behind a projection of two layers."""

from __future__ import annotations

from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks.peers.cases import IMAGE
from benchmarks.peers.setups import Setup
from benchmarks.peers.transformers_class import TransformersAdapter, configurations


class Llava(TransformersAdapter):
    """Reads the encoder's last layer with its class token, as ours does: LLaVA itself leaves out both."""

    def __init__(self, setup: Setup) -> None:
        config = LlavaConfig(
            **configurations(setup),
            image_token_index=IMAGE,
            image_seq_length=setup.image_tokens,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        super().__init__(setup, LlavaForConditionalGeneration(config))
