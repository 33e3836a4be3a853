"""transformers' own class, of a folder of ``gitllm export --to transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gitllm_plugin.conform.asked import Asked
from gitllm_plugin.conform.engines.torch import Forced, pad, search, searched
from gitllm_plugin.errors import ConfigError


class StockEngine:
    """PaliGemma's class.

    Args:
        folder: what ``gitllm export --to transformers`` wrote.
        dtype: of the weights; auto: as they are stored.

    Raises:
        ConfigError: transformers opens no such model there.
    """

    name = "transformers"
    batches = True

    def __init__(self, folder: str | Path, dtype: str = "auto") -> None:
        from transformers import AutoModelForImageTextToText

        try:
            self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder} is no folder of `gitllm export --to transformers` ({error})") from error
        self.precision = str(self.model.dtype).removeprefix("torch.")
        self._num_tokens: dict[tuple[int, ...], int] = {}

    @torch.no_grad()
    def logits(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Generate, with the cache, the tokens that are to be read."""
        forced = Forced([each.then for each in asked])
        out = self.model.generate(**self.inputs([each.ids for each in asked], asked), **forced.arguments)
        return [torch.stack([step[row] for step in out.logits]).float().numpy() for row in range(len(asked))]

    @torch.no_grad()
    def every(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Read whole texts."""
        texts = [each.ids + each.then for each in asked]
        logits = self.model(**self.inputs(texts, asked)).logits.float().numpy()
        return [row[-len(text) :] for row, text in zip(logits, texts, strict=True)]

    @torch.no_grad()
    def beams(self, asked: Sequence[Asked], num_beams: int, new_tokens: int) -> list[tuple[list[int], float]]:
        """Search with beams."""
        inputs = self.inputs([each.ids for each in asked], asked)
        return searched(self.model.generate(**inputs, **search(num_beams, new_tokens)), new_tokens)

    def inputs(self, texts: Sequence[tuple[int, ...]], asked: Sequence[Asked]) -> dict[str, Tensor]:
        """Put image tokens in front of the texts, and padding in front of both; 0 as type is the image's."""
        pixels = torch.from_numpy(np.concatenate([each.pixels for each in asked]))
        image = (self.model.config.image_token_id,) * self._tokens_of(pixels)
        ids, mask = pad([image + text for text in texts], 0, left=True)
        types = (ids != self.model.config.image_token_id).long()
        return {
            "pixel_values": pixels.to(self.model.dtype),
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
        }

    def _tokens_of(self, pixels: Tensor) -> int:
        shape = tuple(pixels.shape[1:])
        if shape not in self._num_tokens:
            features = self.model.model.get_image_features(pixels[:1].to(self.model.dtype))
            self._num_tokens[shape] = features.pooler_output.shape[1]
        return self._num_tokens[shape]
