"""transformers' class of PaliGemma with another language model: by its token types it computes GIT's rule."""

from __future__ import annotations

from typing import Any

from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from benchmarks.peers.cases import IMAGE
from benchmarks.peers.rows import Rows
from benchmarks.peers.setups import Setup
from benchmarks.peers.transformers_class import TransformersAdapter, configurations


class PaliGemma(TransformersAdapter):
    """The image's tokens see each other and the text is causal, so that losses are ours."""

    def __init__(self, setup: Setup) -> None:
        parts = configurations(setup)
        width = setup.text["hidden_size"]
        parts["text_config"].use_bidirectional_attention = False
        parts["vision_config"].projection_dim = width
        config = PaliGemmaConfig(**parts, projection_dim=width, hidden_size=width, image_token_index=IMAGE)
        super().__init__(setup, PaliGemmaForConditionalGeneration(config))

    def inputs(self, rows: Rows) -> dict[str, Any]:
        """Give what is image and what is text, too."""
        return {**super().inputs(rows), "token_type_ids": rows.token_type_ids}
