"""heron, the article's published code: its class of GIT-LLM with OPT, LoRA as it puts it there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from heron.models.git_llm.git_opt import GitOPTConfig, GitOPTForCausalLM  # type: ignore[reportMissingImports]
from heron.models.utils import (  # type: ignore[reportMissingImports]
    apply_lora_model,
    set_trainable_params,
    unload_and_merge_lora,
)
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.peers.adapter import AT_ONCE, Adapter
from benchmarks.peers.cases import Case
from benchmarks.peers.rows import Rows, answers_to, log_likelihoods, pixels, prompt_rows, training_rows
from benchmarks.peers.setups import Setup

_RENAMED = (
    (r"^model\.image_encoder\.(vision_model\.)?", "image."),
    (r"^model\.visual_projection\.visual_projection\.", "projection."),
    (r"^model\.embed_positions\.", "text.decoder.embed_positions."),
    (r"^model\.decoder\.", "text.decoder."),
)


class Heron(Adapter):
    """Its LoRA reaches layers of the same names in the image encoder, which is trained with it.

    Attributes:
        pad_to: tokens that texts are padded to; 0: to the longest of a batch.
    """

    renamed = _RENAMED

    pad_to = 0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        with tempfile.TemporaryDirectory() as vision:
            CLIPVisionModel(CLIPVisionConfig(**setup.vision)).save_pretrained(vision)
            model = GitOPTForCausalLM(GitOPTConfig(**setup.text, vision_model_name=vision))
        self._configuration = {
            "model_type": "git_llm",
            "lora": {
                "r": setup.rank,
                "lora_alpha": setup.alpha,
                "target_modules": ["q_proj", "k_proj", "v_proj"],
                "lora_dropout": 0.0,
                "bias": "none",
                "task_type": "CAUSAL_LM",
            },
        }
        self.model: Any = apply_lora_model(model, self._configuration)
        set_trainable_params(self.model, ["visual_projection", "num_image_with_embedding"], [], train_lora=True)
        self.draw()
        self.model.train()

    def batch(self, case: Case, way: str, pictures: bool) -> Any:
        """Give a row for each text; its model puts the image in front by itself."""
        images = pixels(case, self.setup.image_size) if pictures else None
        rows = training_rows(case.texts, 0, images, self.pad_to)
        return {**_inputs(rows), "labels": rows.labels}

    def loss(self, batch: Any) -> Tensor:
        """Give its own loss."""
        return self.model(**batch).loss

    def answers(self, case: Case) -> Callable[[], list[list[int]]]:
        """Ask ``generate``."""
        inputs = _inputs(prompt_rows(case.texts, 0, pixels(case, self.setup.image_size)))
        return self.continued(inputs, case)

    def scores(self, case: Case) -> Callable[[], list[float]]:
        """Read image, prompt and answer for every answer."""
        texts, images = answers_to(case.texts[0], case.candidates), pixels(case, self.setup.image_size)
        batches = [training_rows(texts[n : n + AT_ONCE], 0, images) for n in range(0, len(texts), AT_ONCE)]

        @torch.no_grad()
        def score() -> list[float]:
            found = []
            for rows in batches:
                logits = self.model(**_inputs(rows)).logits[:, -rows.input_ids.shape[1] :]
                found += log_likelihoods(logits, rows.labels)
            return found

        return score

    def merge_lora(self) -> None:
        """Merge as it does."""
        self.model = unload_and_merge_lora(self.model, self._configuration).eval()


class HeronPadded(Heron):
    """As its data sets give it texts: all of one length, in the article 128 tokens."""

    ways = ("padded to 128",)
    pad_to = 128


def _inputs(rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    return found if rows.pixel_values is None else {**found, "pixel_values": rows.pixel_values}
