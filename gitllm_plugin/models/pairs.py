"""Preferences: how likely a model finds the chosen and the rejected answer of each prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gitllm_plugin.modeling.tokens import IGNORED
from gitllm_plugin.models.image_text import ImageTextModel
from gitllm_plugin.models.samples import as_numbers


class ReadsPairs(ImageTextModel):
    """The part of a registered model that reads two answers to one prompt, image and prompt once."""

    def forward(self, samples: Mapping[str, Any], pairs: bool = False) -> dict[str, Any]:
        """Compute a batch's loss, as :class:`ImageTextModel` does, or with ``pairs`` :meth:`pair_log_likelihoods`."""
        # One entry for both, because ranks exchange gradients of what they are called by.
        return self.pair_log_likelihoods(samples) if pairs else super().forward(samples)

    def pair_log_likelihoods(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~gitllm_plugin.protocols.PairModel`."""
        prompts = list(samples["text_input"])
        index, count = as_numbers(samples.get("image_index")), len(prompts)
        index = torch.arange(count) if index is None else index
        both = {**samples, "image_index": torch.cat([index, index])}
        both |= {name: [*samples[name]] * 2 for name in ("instance_id", "images_seen") if name in samples}
        text = self.encode_pairs(both, prompts * 2, [*samples["text_output"], *samples["text_rejected"]])
        labels = cast(Tensor, text.labels)
        # Texts without an image stand behind one of no tokens.
        inputs = cast(Any, {**self._inputs(text, both), "image_index": both["image_index"]})
        found = self.model.log_likelihoods(**inputs, labels=labels, like=torch.arange(count).repeat(2))
        tokens = int((labels != IGNORED).sum())
        return {"chosen": found[:count], "rejected": found[count:], "num_supervised_tokens": tokens}
