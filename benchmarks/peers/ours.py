"""This package, by the same calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.peers.adapter import Adapter
from benchmarks.peers.cases import PAD, Case
from benchmarks.peers.rows import pixels, prompt_rows, training_rows
from benchmarks.peers.setups import Setup
from gitllm_plugin.config.model import ProjectionKind
from gitllm_plugin.modeling import BuildSettings, GitLLM, ImageEncoder, LoraSettings
from gitllm_plugin.modeling.build import prepare
from gitllm_plugin.modeling.lora import merge_lora

_RENAMED = (
    (r"^language_model\.(model|transformer)\.", "text."),
    (r"^image_encoder\.tower\.(vision_model\.)?", "image."),
)


class Ours(Adapter):
    """A GIT-LLM."""

    renamed = _RENAMED
    ways = ("ours",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        text = AutoConfig.for_model(setup.text_type, **setup.text)
        encoder = ImageEncoder.from_config(CONFIG_MAPPING[setup.vision_type](**setup.vision), final_norm=True)
        kind = cast(ProjectionKind, "pixel_shuffle" if setup.shuffle > 1 else setup.projection)
        decoder = AutoModelForCausalLM.from_config(text)
        self.model: GitLLM = GitLLM(encoder, decoder, projection=kind, projection_factor=setup.shuffle)
        lora = LoraSettings(rank=setup.rank, alpha=setup.alpha, dropout=0.0)
        prepare(self.model, BuildSettings(trainable="proj+lora", lora=lora))
        self.draw()
        self.model.train()

    def batch(self, case: Case, way: str, pictures: bool) -> Any:
        """Give texts padded to the longest, and each image once."""
        rows = training_rows(case.texts, 0, None)
        arguments = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "labels": rows.labels}
        return {**arguments, **(self._images(case) if pictures else {})}

    def loss(self, batch: Any) -> Tensor:
        """Give the loss as training does."""
        loss = self.model(**batch, logits="none").loss
        assert loss is not None
        return loss

    def answers(self, case: Case) -> Callable[[], list[list[int]]]:
        """Ask ``generate``."""
        images = self._images(case)
        rows = prompt_rows(case.texts, 0, images["pixel_values"])
        length: dict[str, Any] = {"max_new_tokens": case.new_tokens, "min_new_tokens": case.new_tokens}

        def answer() -> list[list[int]]:
            return self.model.generate(
                rows.input_ids,
                rows.attention_mask,
                **images,
                **length,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=PAD,
            ).tolist()

        return answer

    def scores(self, case: Case) -> Callable[[], list[float]]:
        """Ask ``score_candidates``, which reads image and prompt once."""
        prompt = torch.tensor([list(case.texts[0].prompt)])
        images = pixels(case, self.setup.image_size)

        def score() -> list[float]:
            found = self.model.score_candidates(prompt, None, images, candidates=[case.candidates])
            return found.log_likelihood[0].tolist()

        return score

    def merge_lora(self) -> None:
        """Merge, as an evaluation does."""
        merge_lora(self.model.language_model)
        self.model.eval()

    def _images(self, case: Case) -> dict[str, Tensor]:
        return {
            "pixel_values": pixels(case, self.setup.image_size),
            "image_index": torch.tensor([text.image for text in case.texts]),
        }
