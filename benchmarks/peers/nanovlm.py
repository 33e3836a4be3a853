"""nanoVLM: its own classes of a SigLIP encoder, a pixel shuffle and a LLaMA decoder, its collator and its packing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from data.advanced_datasets import ConstantLengthDataset  # type: ignore[reportMissingImports]
from data.collators import VQACollator  # type: ignore[reportMissingImports]
from models.config import VLMConfig  # type: ignore[reportMissingImports]
from models.vision_language_model import VisionLanguageModel  # type: ignore[reportMissingImports]
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.adapter import AT_ONCE, LONGEST, Adapter
from benchmarks.peers.cases import IMAGE, Case, Text
from benchmarks.peers.rows import IGNORED, answers_to, log_likelihoods, pixels
from benchmarks.peers.setups import Setup
from benchmarks.peers.word_tokenizer import IMAGE_WORD, word_tokenizer

PACKED = "packed"
_RENAMED = (
    (r"^decoder\.token_embedding\.", "text.embed_tokens."),
    (r"^decoder\.blocks\.", "text.layers."),
    (r"^decoder\.norm\.", "text.norm."),
    (r"^(text.*)\.norm1\.", r"\1.input_layernorm."),
    (r"^(text.*)\.norm2\.", r"\1.post_attention_layernorm."),
    (r"^(text.*)\.attn\.out_proj\.", r"\1.self_attn.o_proj."),
    (r"^vision_encoder\.patch_embedding\.conv\.", "image.embeddings.patch_embedding."),
    (r"^vision_encoder\.patch_embedding\.position_embedding", "image.embeddings.position_embedding.weight"),
    (r"^vision_encoder\.blocks\.", "image.encoder.layers."),
    (r"^vision_encoder\.layer_norm\.", "image.post_layernorm."),
    (r"^(image.*)\.ln(\d)\.", r"\1.layer_norm\2."),
    (r"\.attn\.", ".self_attn."),
    (r"^MP\.proj\.", "projection.0."),
)


class NanoVLM(Adapter):
    """Its encoder is frozen, as its own option does; LoRA is put into its decoder by PEFT: it has none."""

    renamed = _RENAMED
    ways = (LONGEST, PACKED)
    other_losses = (PACKED,)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._folder = tempfile.TemporaryDirectory()
        word_tokenizer(setup.text["vocab_size"]).save_pretrained(self._folder.name)
        self.model: Any = VisionLanguageModel(_configuration(setup, self._folder.name), load_backbone=False)
        self.tokenizer = self.model.tokenizer
        self.model.requires_grad_(False)
        lora = LoraConfig(
            r=setup.rank,
            lora_alpha=setup.alpha,
            lora_dropout=0.0,
            target_modules=r"decoder\..*\.(q_proj|k_proj|v_proj)",
        )
        inject_adapter_in_model(lora, self.model)
        self.model.MP.requires_grad_(True)
        self.draw()
        self.model.train()

    def names(self, name: str) -> str | Sequence[str]:
        """Give the common name, or the three of the encoder's one matrix for query, key and value."""
        common = super().names(name)
        if isinstance(common, str) and ".qkv_proj." in common:
            return [common.replace(".qkv_proj.", f".{part}_proj.") for part in "qkv"]
        return common

    def batch(self, case: Case, way: str, pictures: bool) -> Any:
        """Collate by its classes."""
        samples = self._samples(case.texts, pixels(case, self.setup.image_size) if pictures else None)
        if way == PACKED:
            samples = _packed(samples)
        return VQACollator(self.tokenizer, None)(samples)

    def loss(self, batch: Any) -> Tensor:
        """Give its own loss."""
        return self._forward(batch, targets=batch["labels"])[1]

    def answers(self, case: Case) -> Callable[[], list[list[int]]]:
        """Ask its ``generate``."""
        prompts = [Text(text.prompt, [], text.image) for text in case.texts]
        batch = VQACollator(self.tokenizer, None)(self._samples(prompts, pixels(case, self.setup.image_size)))

        def answer() -> list[list[int]]:
            return self.model.generate(
                batch["input_ids"],
                batch["images"],
                batch["attention_mask"],
                max_new_tokens=case.new_tokens,
                greedy=True,
            ).tolist()

        return answer

    def scores(self, case: Case) -> Callable[[], list[float]]:
        """Read image, prompt and answer for every answer."""
        texts = answers_to(case.texts[0], case.candidates)
        samples = self._samples(texts, pixels(case, self.setup.image_size))
        collate = VQACollator(self.tokenizer, None)
        batches = [collate(samples[start : start + AT_ONCE]) for start in range(0, len(samples), AT_ONCE)]

        @torch.no_grad()
        def score() -> list[float]:
            found = []
            for batch in batches:
                hidden, _ = self._forward(batch)
                labels = F.pad(batch["labels"], (1, 0), value=IGNORED)[:, :-1]  # its labels are shifted already
                found += log_likelihoods(self.model.decoder.head(hidden), labels)
            return found

        return score

    def merge_lora(self) -> None:
        """Merge by PEFT."""
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        self.model.eval()

    def _forward(self, batch: Any, **targets: Any) -> Any:
        return self.model(batch["input_ids"], batch["images"], attention_mask=batch["attention_mask"], **targets)

    def _samples(self, texts: Sequence[Text], images: Tensor | None) -> list[dict[str, Any]]:
        """Give what its data sets give: labels stand where they are predicted."""
        found = []
        for text in texts:
            places = [IMAGE] * (self.setup.image_tokens if images is not None else 0)
            ids = torch.tensor([*places, *text.prompt, *text.answer])
            labels = torch.tensor([IGNORED] * (len(places) + len(text.prompt)) + list(text.answer))
            found.append(
                {
                    "input_ids": ids,
                    "attention_mask": torch.ones_like(ids),
                    "labels": F.pad(labels[1:], (0, 1), value=IGNORED),
                    "images": [] if images is None else [images[text.image][None].to(self._dtype)],
                }
            )
        return found

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.setup.dtype)


def _packed(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put all into one row by its packing, padding between them.

    Its own five spare rows are left out (``delta``): so few texts as are timed here would have a row each.
    """
    for sample in samples:
        for name, value in (("input_ids", 1), ("attention_mask", 0), ("labels", IGNORED)):
            sample[name] = F.pad(sample[name], (0, 1), value=value)
    packing = ConstantLengthDataset.__new__(ConstantLengthDataset)
    length = sum(len(sample["input_ids"]) for sample in samples)
    groups = packing._balanced_greedy_knapsack(samples, length, delta=0)
    names = ("input_ids", "labels", "attention_mask", "images")
    return [dict(zip(names, packing._pack_one_group(group, samples, length), strict=True)) for group in groups]


def _configuration(setup: Setup, tokenizer: str) -> VLMConfig:
    text, vision = setup.text, setup.vision
    return VLMConfig(
        vit_hidden_dim=vision["hidden_size"],
        vit_inter_dim=vision["intermediate_size"],
        vit_patch_size=vision["patch_size"],
        vit_img_size=vision["image_size"],
        vit_n_heads=vision["num_attention_heads"],
        vit_n_blocks=vision["num_hidden_layers"],
        lm_hidden_dim=text["hidden_size"],
        lm_inter_dim=text["intermediate_size"],
        lm_rms_eps=text["rms_norm_eps"],
        lm_re_base=text["rope_parameters"]["rope_theta"],
        lm_max_position_embeddings=text["max_position_embeddings"],
        lm_vocab_size=text["vocab_size"],
        lm_n_heads=text["num_attention_heads"],
        lm_n_kv_heads=text["num_key_value_heads"],
        lm_n_blocks=text["num_hidden_layers"],
        lm_tie_weights=text["tie_word_embeddings"],
        lm_tokenizer=tokenizer,
        mp_pixel_shuffle_factor=setup.shuffle,
        mp_image_token_length=setup.image_tokens,
        vlm_extra_tokens={"image_token": IMAGE_WORD},
    )
