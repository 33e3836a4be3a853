"""Classes of transformers for images and text, with LoRA by PEFT: what LLaVA and PaliGemma have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig

from benchmarks.peers.adapter import AT_ONCE, Adapter
from benchmarks.peers.cases import Case
from benchmarks.peers.rows import Rows, answers_to, log_likelihoods, pixels, prompt_rows, training_rows
from benchmarks.peers.setups import Setup

_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj)"
_RENAMED = (
    (r"^model\.language_model\.", "text."),
    (r"^model\.vision_tower\.(vision_model\.)?", "image."),
    (r"^model\.multi_modal_projector\.linear\.", "projection.0."),
    (r"^model\.multi_modal_projector\.", "projection."),
)


def configurations(setup: Setup) -> dict[str, Any]:
    """Give both parts' configurations by the names of a class for images and text."""
    return {
        "text_config": AutoConfig.for_model(setup.text_type, **setup.text),
        "vision_config": AutoConfig.for_model(setup.vision_type, **setup.vision),
    }


class TransformersAdapter(Adapter):
    """Such a class; all that is frozen is frozen, projection and LoRA are trained.

    Args:
        setup: of what sizes ``model`` is.
        model: a class of transformers' for images and text.
    """

    renamed = _RENAMED

    def __init__(self, setup: Setup, model: Any) -> None:
        super().__init__(setup)
        lora = LoraConfig(
            r=setup.rank,
            lora_alpha=setup.alpha,
            lora_dropout=0.0,
            target_modules=_TARGETS,
            modules_to_save=None,
            task_type="CAUSAL_LM",
        )
        self.model: Any = get_peft_model(model, lora)
        for name, parameter in self.model.named_parameters():
            if "multi_modal_projector" in name:
                parameter.requires_grad = True
        self.draw()
        self.model.train()

    def inputs(self, rows: Rows) -> dict[str, Any]:
        """Give arguments of the class."""
        found: dict[str, Any] = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
        if rows.pixel_values is not None:
            found["pixel_values"] = rows.pixel_values
        return found

    def batch(self, case: Case, way: str, pictures: bool) -> Any:
        """Give a row for each text."""
        images = self._pixels(case) if pictures else None
        rows = training_rows(case.texts, self.setup.image_tokens, images)
        return {**self.inputs(rows), "labels": rows.labels}

    def loss(self, batch: Any) -> Tensor:
        """Give the class's own loss."""
        return self.model(**batch).loss

    def answers(self, case: Case) -> Callable[[], list[list[int]]]:
        """Ask ``generate``."""
        inputs = self.inputs(prompt_rows(case.texts, self.setup.image_tokens, self._pixels(case)))
        return self.continued(inputs, case)

    def scores(self, case: Case) -> Callable[[], list[float]]:
        """Read image, prompt and answer for every answer."""
        texts, images = answers_to(case.texts[0], case.candidates), self._pixels(case)
        batches = [
            training_rows(texts[start : start + AT_ONCE], self.setup.image_tokens, images)
            for start in range(0, len(texts), AT_ONCE)
        ]

        @torch.no_grad()
        def score() -> list[float]:
            return [s for rows in batches for s in log_likelihoods(self.model(**self.inputs(rows)).logits, rows.labels)]

        return score

    def merge_lora(self) -> None:
        """Merge by PEFT."""
        self.model = self.model.merge_and_unload().eval()

    def _pixels(self, case: Case) -> Tensor:
        return pixels(case, self.setup.image_size).to(getattr(torch, self.setup.dtype))
